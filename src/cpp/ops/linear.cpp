#include <algorithm>
#include <type_traits>

#include "ops/linear_gradients.h"

namespace fusedlstm {

template <class T>
PackedLinear<T> pack_linear(ptrdiff_t outputs, ptrdiff_t inputs, const T* weight, const T* bias,
                            Compute compute) {
  const Level& level = current_level();
  const Kernels<T>& k = kernels_of<T>(level);
  const ptrdiff_t padded = (outputs + kLowPanel - 1) / kLowPanel * kLowPanel;
  PackedLinear<T> w{inputs, outputs, &level, compute, {}, {}, {}, {}, Buffer<T>::zeros(padded)};
  if (bias) std::copy(bias, bias + outputs, w.bias.data());
  if (compute == Compute::kFull) {
    w.forward = Buffer<T>(packed_size(inputs, outputs, k.panel));
    w.backward = Buffer<T>(packed_size(outputs, inputs, k.panel));
  } else if (compute == Compute::kBfloat16) {
    w.low_forward.bf16 = Buffer<uint16_t>(low_packed_size(inputs, outputs));
    w.low_backward.bf16 = Buffer<uint16_t>(low_packed_size(outputs, inputs));
  } else {
    w.low_forward.int8 = Buffer<int8_t>(padded / kLowPanel * int8_panel(inputs));
    w.low_forward.scale = Buffer<float>::zeros(padded);
  }
  run_job(0, nullptr, [&](Team& team) {
    const ptrdiff_t panel = compute == Compute::kFull ? k.panel : kLowPanel;
    const Share columns = share_of(outputs, team.thread(), team.threads(), panel),
                back = share_of(inputs, team.thread(), team.threads(), panel);
    const Scope scope(Phase::kPack, -1, [&] {
      return elements_work(columns.size() * inputs + back.size() * outputs, 0, 2 * sizeof(T));
    });
    const T *from = weight + columns.begin * inputs, *from_back = weight + back.begin;
    if (compute == Compute::kFull) {
      if (columns.size() > 0)
        k.pack(inputs, columns.size(), from, inputs, SourceBy::kColumns, {},
               w.forward.data() + columns.begin * inputs);
      if (back.size() > 0)
        k.pack(outputs, back.size(), from_back, inputs, SourceBy::kRows, {},
               w.backward.data() + back.begin * outputs);
    } else if constexpr (std::is_same_v<T, float>) {
      const ptrdiff_t at = columns.begin / kLowPanel;
      if (compute == Compute::kInt8) {
        level.int8.pack(inputs, columns.size(), from, inputs,
                        w.low_forward.int8.data() + at * int8_panel(inputs), int8_layout(inputs),
                        w.low_forward.scale.data() + columns.begin);
        return;
      }
      level.bf16.pack(inputs, columns.size(), from, inputs, SourceBy::kColumns, {},
                      w.low_forward.bf16.data() + columns.begin * low_padded(inputs), bf16_layout(inputs));
      level.bf16.pack(outputs, back.size(), from_back, inputs, SourceBy::kRows, {},
                      w.low_backward.bf16.data() + back.begin * low_padded(outputs), bf16_layout(outputs));
    }
  });
  return w;
}

template <class T>
void round_for_share(Team& team, const PackedLinear<T>& w, ptrdiff_t R, const T* x, ptrdiff_t x_row,
                     LowRows& low_x) {
  if (w.compute == Compute::kFull) return;
  if constexpr (std::is_same_v<T, float>) low_x.round_share(*w.level, R, x, x_row, false, team);
  team.barrier();
}

template <class T>
void linear_share(Team& team, const PackedLinear<T>& w, ptrdiff_t R, const T* x, ptrdiff_t x_row,
                  const LowRows& low_x, T* y, ptrdiff_t y_row) {
  const Scope scope(Phase::kOutput, -1, [&] {
    return product_work(R, w.outputs, w.inputs, operand_size<T>(w.compute), sizeof(T), team.threads());
  });
  if constexpr (std::is_same_v<T, float>) {
    const auto fill = [&](auto product) {
      product.M = R;
      product.N = w.outputs;
      product.init = w.bias.data();
      product.init_row = 0;
      product.c = y;
      product.c_row = y_row;
      return product;
    };
    if (w.compute == Compute::kBfloat16)
      return gemm_share(w.level->bf16, fill(bf16_product(low_x, w.low_forward)), team);
    if (w.compute == Compute::kInt8) {
      GemmInt8 product = fill(int8_product(low_x, w.low_forward));
      product.row_scale = low_x.scale.data();
      return gemm_share(w.level->int8, product, team);
    }
  }
  gemm_share<T>(w.kernels(),
                {.M = R,
                 .N = w.outputs,
                 .K = w.inputs,
                 .a = x,
                 .a_row = x_row,
                 .b = w.forward.data(),
                 .init = w.bias.data(),
                 .init_row = 0,
                 .c = y,
                 .c_row = y_row},
                team);
}

template <class T>
void linear_forward(const PackedLinear<T>& w, ptrdiff_t R, const T* x, T* y, const Poll& poll) {
  LowRows low_x(w.compute, R, w.inputs);
  run_job(threads_for(2.0 * static_cast<double>(R * w.inputs * w.outputs)), poll, [&](Team& team) {
    round_for_share(team, w, R, x, w.inputs, low_x);
    linear_share(team, w, R, x, w.inputs, low_x, y, w.outputs);
  });
}

template <class T>
void linear_backward(const PackedLinear<T>& w, ptrdiff_t R, const T* x, const T* dy, T* dx, T* d_weight,
                     T* d_bias, const Poll& poll) {
  LinearGradients<T> gradients(w, R, R, d_weight != nullptr);
  run_job(num_threads(), poll, [&](Team& team) {
    round_for_share(team, w, R, x, w.inputs, gradients.low_x);
    gradients.share(team, R, x, dy, w.outputs, dx, d_weight, d_bias);
  });
}

#define FUSEDLSTM_INSTANTIATE(T)                                                                            \
  template PackedLinear<T> pack_linear(ptrdiff_t, ptrdiff_t, const T*, const T*, Compute);                  \
  template void round_for_share(Team&, const PackedLinear<T>&, ptrdiff_t, const T*, ptrdiff_t, LowRows&);   \
  template void linear_share(Team&, const PackedLinear<T>&, ptrdiff_t, const T*, ptrdiff_t, const LowRows&, \
                             T*, ptrdiff_t);                                                                \
  template void linear_forward(const PackedLinear<T>&, ptrdiff_t, const T*, T*, const Poll&);               \
  template void linear_backward(const PackedLinear<T>&, ptrdiff_t, const T*, const T*, T*, T*, T*,          \
                                const Poll&);
FUSEDLSTM_INSTANTIATE(float)
FUSEDLSTM_INSTANTIATE(double)
#undef FUSEDLSTM_INSTANTIATE

}  // namespace fusedlstm
