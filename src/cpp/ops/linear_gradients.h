// Gradients of y = x W^T + b, by every thread of a team:
//
//   dx = dy W        dW += dy^T x        db += sum dy
//
// In bfloat16 x and dy are rounded for the two products; sums, dW and db are float32.
#pragma once

#include <vector>

#include "ops/ops.h"
#include "runtime/products.h"
#include "runtime/profiler.h"

namespace fusedlstm {

template <class T>
class LinearGradients {
 public:
  LowRows low_x;  // the rows of x, rounded before share()

  // For up to so many rows of x and of dy; `weights`: whether dW will be wanted.
  LinearGradients(const PackedLinear<T>& w, ptrdiff_t x_rows, ptrdiff_t dy_rows, bool weights)
      : low_x(w.compute, x_rows, w.inputs), w_(w), low_dy_(w.compute, dy_rows, w.outputs) {
    const bool full = w.compute == Compute::kFull;
    for (int t = 0; weights && t < num_threads(); ++t) {
      scratch_.emplace_back(full ? transposed_scratch(w.inputs, w.kernels().panel) : 0);
      scratch16_.emplace_back(full ? 0 : transposed_scratch_bf16(w.inputs));
    }
  }

  // dx assigned, the others added to; each may be null.
  void share(Team& team, ptrdiff_t R, const T* x, const T* dy, ptrdiff_t dy_row, T* dx, T* d_weight,
             T* d_bias) {
    const Kernels<T>& k = w_.kernels();
    const size_t thread = static_cast<size_t>(team.thread());
    const Share columns = share_of(w_.outputs, team.thread(), team.threads(), 16);
    const auto work = [&] {
      return product_work(R, w_.inputs, w_.outputs, operand_size<T>(w_.compute), sizeof(T), team.threads());
    };
    if (d_bias && columns.size() > 0)
      k.add_rows(R, columns.size(), dy + columns.begin, dy_row, nullptr, d_bias + columns.begin);
    if constexpr (std::is_same_v<T, float>) {
      if (w_.compute == Compute::kBfloat16) {
        const Bf16Kernels& k16 = w_.level->bf16;
        low_dy_.round_share(*w_.level, R, dy, dy_row, false, team);
        team.barrier();
        if (dx) {
          const Scope scope(Phase::kInputGradient, -1, work);
          GemmBf16 product = bf16_product(low_dy_, w_.low_backward);
          product.M = R;
          product.N = w_.inputs;
          product.init = nullptr;
          product.init_row = 0;
          product.c = dx;
          product.c_row = w_.inputs;
          gemm_share(k16, product, team);
        }
        if (!d_weight) return;
        const Scope scope(Phase::kWeightGradient, -1, work);
        gemm_transposed_share(
            k16,
            {.M = w_.outputs,
             .R = R,
             .a = low_dy_.bf16.data(),
             .a_row = low_dy_.pitch,
             .a_rows = nullptr,
             .side = {w_.inputs, low_x.bf16.data(), low_x.pitch, nullptr, d_weight, w_.inputs},
             .scratch = scratch16_[thread].data()},
            team);
        return;
      }
    }
    if (dx) {
      const Scope scope(Phase::kInputGradient, -1, work);
      gemm_share<T>(k,
                    {.M = R,
                     .N = w_.inputs,
                     .K = w_.outputs,
                     .a = dy,
                     .a_row = dy_row,
                     .b = w_.backward.data(),
                     .init = nullptr,
                     .init_row = 0,
                     .c = dx,
                     .c_row = w_.inputs},
                    team);
    }
    if (!d_weight) return;
    const Scope scope(Phase::kWeightGradient, -1, work);
    gemm_transposed_share<T>(k,
                             {.M = w_.outputs,
                              .R = R,
                              .a = dy,
                              .a_row = dy_row,
                              .a_rows = nullptr,
                              .side = {w_.inputs, x, w_.inputs, nullptr, d_weight, w_.inputs},
                              .scratch = scratch_[thread].data()},
                             team);
  }

 private:
  const PackedLinear<T>& w_;
  LowRows low_dy_;
  std::vector<Buffer<T>> scratch_;           // by thread
  std::vector<Buffer<uint16_t>> scratch16_;  // the same in bfloat16
};

}  // namespace fusedlstm
