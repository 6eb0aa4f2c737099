// One step of one layer, forward and backward: the kernel that a sequence runs at every step, on its own.
#include <algorithm>

#include "lstm/low_precision.h"
#include "lstm/lstm.h"
#include "lstm/split.h"
#include "lstm/step_work.h"
#include "lstm/weight_gradients.h"

namespace fusedlstm {
namespace {

template <class T>
Buffer<T> padded_rows(ptrdiff_t rows, ptrdiff_t n, ptrdiff_t pitch, const T* from) {
  Buffer<T> out = Buffer<T>::zeros(rows * pitch);
  for (ptrdiff_t r = 0; from && r < rows; ++r)
    std::copy(from + r * n, from + (r + 1) * n, out.data() + r * pitch);
  return out;
}
template <class T>
void unpad_rows(ptrdiff_t rows, ptrdiff_t n, ptrdiff_t pitch, const T* from, T* to) {
  for (ptrdiff_t r = 0; r < rows; ++r) std::copy(from + r * pitch, from + r * pitch + n, to + r * n);
}

}  // namespace

template <class T>
void lstm_cell_forward(const PackedWeights<T>& w, ptrdiff_t N, const T* x, const T* h, const T* c, T* h_next,
                       T* c_next, T* gates) {
  const ptrdiff_t H = w.shape.hidden_size, H_pad = w.shape.hidden_padded(), I = w.shape.input_size;
  const ptrdiff_t pitch = row_pitch<T>(H), gates_pitch = 4 * H_pad;
  const Kernels<T>& k = w.kernels();
  const PackedLayer<T>& layer = w.layers[0];
  const Buffer<T> h_rows = padded_rows(N, H, pitch, h);
  Buffer<T> c_rows = padded_rows(N, H, pitch, c), h_out(N * pitch), gate_rows(N * gates_pitch);
  const auto product = [&](ptrdiff_t columns, ptrdiff_t depth, const Team& team) {
    return product_work(N, columns, depth, sizeof(T), sizeof(T), team.threads());
  };
  run_job(layer_threads(N, N, H, I), nullptr, [&](Team& team) {
    {
      const Scope scope(Phase::kInput, 0, [&] { return product(4 * H, I, team); });
      gemm_share<T>(k,
                    {.M = N,
                     .N = 4 * H_pad,
                     .K = I,
                     .a = x,
                     .a_row = I,
                     .b = layer.input.data(),
                     .init = layer.bias.data(),
                     .init_row = 0,
                     .c = gate_rows.data(),
                     .c_row = gates_pitch},
                    team);
    }
    team.barrier();
    const Share units = share_of(H_pad, team.thread(), team.threads(), k.lanes);
    CellForward<T> step{.M = N,
                        .H = H,
                        .H_pad = H_pad,
                        .unit_begin = units.begin,
                        .unit_end = units.end,
                        .h_prev = h_rows.data(),
                        .h_row = pitch,
                        .recurrent = layer.recurrent.data(),
                        .input = gate_rows.data(),
                        .input_row = gates_pitch,
                        .gates = gate_rows.data(),
                        .gates_row = gates_pitch,
                        .c_prev = c_rows.data(),
                        .c = c_rows.data(),
                        .c_row = pitch,
                        .h = h_out.data()};
    StepScope scope(0, [&] { return step_work(step, 0, w.compute); });
    step.ticks = scope.ticks();
    k.cell_forward(step);
  });
  unpad_rows(N, H, pitch, h_out.data(), h_next);
  unpad_rows(N, H, pitch, c_rows.data(), c_next);
  unpad_rows(4 * N, H, H_pad, gate_rows.data(), gates);
}

template <class T>
void lstm_cell_backward(const PackedWeights<T>& w, ptrdiff_t N, const T* x, const T* h, const T* c,
                        const T* c_next, const T* gates, const T* dh, const T* dc,
                        const CellGradients<T>& out) {
  const ptrdiff_t H = w.shape.hidden_size, H_pad = w.shape.hidden_padded(), I = w.shape.input_size;
  const ptrdiff_t pitch = row_pitch<T>(H), gates_pitch = 4 * H_pad;
  const Kernels<T>& k = w.kernels();
  const PackedLayer<T>& layer = w.layers[0];
  const WeightOffsets offset = weight_offsets(w.shape)[0];
  Buffer<T> dA = padded_rows(4 * N, H, H_pad, gates);
  const Buffer<T> c_rows = padded_rows(N, H, pitch, c), c_next_rows = padded_rows(N, H, pitch, c_next);
  const Buffer<T> dh_rows = padded_rows(N, H, pitch, dh);
  Buffer<T> dc_rows = padded_rows(N, H, pitch, dc);
  const ptrdiff_t scratch_size = transposed_scratch(I, k.panel, H);
  Buffer<T> bias_sums = Buffer<T>::zeros(4 * H_pad);
  std::vector<Buffer<T>> scratch;
  const int threads = layer_threads(N, N, H, I) == 1 ? 1 : num_threads();
  for (int t = 0; t < threads; ++t) scratch.emplace_back(scratch_size);
  const auto product = [&](ptrdiff_t columns, ptrdiff_t depth, const Team& team) {
    return product_work(N, columns, depth, sizeof(T), sizeof(T), team.threads());
  };
  run_job(threads, nullptr, [&](Team& team) {
    {
      const Share units = share_of(H_pad, team.thread(), team.threads(), k.panel);
      const Scope scope(Phase::kGatesBackward, 0, [&] { return gates_backward_work<T>(N * units.size()); });
      k.cell_backward({.M = N,
                       .H_pad = H_pad,
                       .unit_begin = units.begin,
                       .unit_end = units.end,
                       .gates = dA.data(),
                       .gates_row = gates_pitch,
                       .c_prev = c_rows.data(),
                       .c = c_next_rows.data(),
                       .c_row = pitch,
                       .dh = dh_rows.data(),
                       .dc = dc_rows.data(),
                       .d_row = pitch,
                       .dy = nullptr,
                       .dy_row = 0});
    }
    team.barrier();
    {
      const Scope scope(Phase::kRecurrentBackward, 0, [&] { return product(H, 4 * H, team); });
      gemm_share<T>(k,
                    {.M = N,
                     .N = H,
                     .K = 4 * H_pad,
                     .a = dA.data(),
                     .a_row = gates_pitch,
                     .b = layer.recurrent_backward.data(),
                     .init = nullptr,
                     .init_row = 0,
                     .c = out.dh_prev,
                     .c_row = H},
                    team);
    }
    {
      const Scope scope(Phase::kInputGradient, 0, [&] { return product(I, 4 * H, team); });
      gemm_share<T>(k,
                    {.M = N,
                     .N = I,
                     .K = 4 * H_pad,
                     .a = dA.data(),
                     .a_row = gates_pitch,
                     .b = layer.input_backward.data(),
                     .init = nullptr,
                     .init_row = 0,
                     .c = out.dx,
                     .c_row = I},
                    team);
    }
    if (!out.parameters) return;
    const Scope scope(Phase::kWeightGradient, 0, [&] { return product(H + I, 4 * H, team); });
    T* const mine = scratch[static_cast<size_t>(team.thread())].data();
    const WeightGradients<T> weights{k, H, H_pad, dA.data(), gates_pitch};
    weights.product_share(team, N, nullptr, {I, x, I, nullptr, out.parameters + offset.weight_ih, I},
                          {H, h, H, nullptr, out.parameters + offset.weight_hh, H}, mine);
    if (w.shape.bias) weights.bias_sums_share(team, N, nullptr, bias_sums.data());
  });
  if (out.parameters && w.shape.bias)
    add_bias_gradients(k, H, H_pad, bias_sums.data(), out.parameters + offset.bias_ih,
                       out.parameters + offset.bias_hh);
  unpad_rows(N, H, pitch, dc_rows.data(), out.dc_prev);
}

#define FUSEDLSTM_INSTANTIATE(T)                                                                            \
  template void lstm_cell_forward(const PackedWeights<T>&, ptrdiff_t, const T*, const T*, const T*, T*, T*, \
                                  T*);                                                                      \
  template void lstm_cell_backward(const PackedWeights<T>&, ptrdiff_t, const T*, const T*, const T*,        \
                                   const T*, const T*, const T*, const T*, const CellGradients<T>&);
FUSEDLSTM_INSTANTIATE(float)
FUSEDLSTM_INSTANTIATE(double)
#undef FUSEDLSTM_INSTANTIATE

}  // namespace fusedlstm
