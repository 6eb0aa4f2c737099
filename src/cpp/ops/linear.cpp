#include <algorithm>
#include <vector>

#include "ops/ops.h"
#include "runtime/products.h"

namespace fusedlstm {

template <class T>
PackedLinear<T> pack_linear(ptrdiff_t outputs, ptrdiff_t inputs, const T* weight, const T* bias) {
  const Level& level = current_level();
  const Kernels<T>& k = kernels_of<T>(level);
  PackedLinear<T> w{inputs,
                    outputs,
                    &level,
                    Buffer<T>(packed_size(inputs, outputs, k.panel)),
                    Buffer<T>(packed_size(outputs, inputs, k.panel)),
                    Buffer<T>::zeros(outputs)};
  if (bias) std::copy(bias, bias + outputs, w.bias.data());
  run_job(0, nullptr, [&](Team& team) {
    const Share columns = share_of(outputs, team.thread(), team.threads(), k.panel);
    if (columns.size() > 0)
      k.pack(inputs, columns.size(), weight + columns.begin * inputs, 1, inputs,
             w.forward.data() + columns.begin * inputs);
    const Share back = share_of(inputs, team.thread(), team.threads(), k.panel);
    if (back.size() > 0)
      k.pack(outputs, back.size(), weight + back.begin, inputs, 1, w.backward.data() + back.begin * outputs);
  });
  return w;
}

template <class T>
void linear_forward(const PackedLinear<T>& w, ptrdiff_t R, const T* x, T* y, const Poll& poll) {
  run_job(threads_for(2.0 * static_cast<double>(R * w.inputs * w.outputs)), poll, [&](Team& team) {
    gemm_share<T>(w.kernels(),
                  {.M = R,
                   .N = w.outputs,
                   .K = w.inputs,
                   .a = x,
                   .a_row = w.inputs,
                   .b = w.forward.data(),
                   .init = w.bias.data(),
                   .init_row = 0,
                   .c = y,
                   .c_row = w.outputs},
                  team);
  });
}

template <class T>
void linear_backward(const PackedLinear<T>& w, ptrdiff_t R, const T* x, const T* dy, T* dx, T* d_weight,
                     T* d_bias, const Poll& poll) {
  const Kernels<T>& k = w.kernels();
  std::vector<Buffer<T>> scratch;
  for (int t = 0; t < num_threads(); ++t) scratch.emplace_back(transposed_scratch(w.inputs, k.panel));
  run_job(static_cast<int>(scratch.size()), poll, [&](Team& team) {
    if (dx)
      gemm_share<T>(k,
                    {.M = R,
                     .N = w.inputs,
                     .K = w.outputs,
                     .a = dy,
                     .a_row = w.outputs,
                     .b = w.backward.data(),
                     .init = nullptr,
                     .init_row = 0,
                     .c = dx,
                     .c_row = w.inputs},
                    team);
    if (d_weight)
      gemm_transposed_share<T>(k,
                               {.M = w.outputs,
                                .N = w.inputs,
                                .R = R,
                                .a = dy,
                                .a_row = w.outputs,
                                .a_rows = nullptr,
                                .b = x,
                                .b_row = w.inputs,
                                .b_rows = nullptr,
                                .c = d_weight,
                                .c_row = w.inputs,
                                .scratch = scratch[static_cast<size_t>(team.thread())].data()},
                               team);
    const Share columns = share_of(w.outputs, team.thread(), team.threads(), 16);
    if (d_bias && columns.size() > 0)
      k.add_rows(R, columns.size(), dy + columns.begin, w.outputs, nullptr, d_bias + columns.begin);
  });
}

#define FUSEDLSTM_INSTANTIATE(T)                                                                   \
  template PackedLinear<T> pack_linear(ptrdiff_t, ptrdiff_t, const T*, const T*);                  \
  template void linear_forward(const PackedLinear<T>&, ptrdiff_t, const T*, T*, const Poll&);      \
  template void linear_backward(const PackedLinear<T>&, ptrdiff_t, const T*, const T*, T*, T*, T*, \
                                const Poll&);
FUSEDLSTM_INSTANTIATE(float)
FUSEDLSTM_INSTANTIATE(double)
#undef FUSEDLSTM_INSTANTIATE

}  // namespace fusedlstm
