// dW += dA^T X        dR += dA^T H_{t-1}        db += sum dA
// as large products over all rows at once, never per step. A row is one step of one sequence.
#pragma once

#include <algorithm>
#include <vector>

#include "lstm/rows.h"
#include "runtime/memory.h"
#include "runtime/products.h"
#include "runtime/profiler.h"

namespace fusedlstm {

// Of the gates' derivatives of so many units: 25 operations and a tanh; gates, c, dh, dy, dc.
template <class T>
Work gates_backward_work(ptrdiff_t units) {
  return elements_work(units, 45, 14 * sizeof(T));
}

// The order in which sums over the rows of the steps [begin, end) are made: last step first, within a step by
// slot. Rows and the states before them, both counted from the first.
struct ReductionOrder {
  std::vector<int32_t> row, state_before;

  ReductionOrder() = default;
  ReductionOrder(const Rows& rows, ptrdiff_t begin, ptrdiff_t end) {
    for (ptrdiff_t s = end - 1; s >= begin; --s) {
      for (ptrdiff_t slot = 0; slot < rows.active(s); ++slot) {
        row.push_back(static_cast<int32_t>(rows.start(s) - rows.start(begin) + slot));
        state_before.push_back(static_cast<int32_t>(rows.state_before(s) - rows.state_before(begin) + slot));
      }
    }
  }
  ptrdiff_t rows() const { return static_cast<ptrdiff_t>(row.size()); }
};

// The weight gradients of one layer and direction from dA (R rows in the order `rows`; gate columns
// [4][H_pad]).
template <class T>
struct WeightGradients {
  const Kernels<T>& k;
  ptrdiff_t H, H_pad;
  const T* dA;
  ptrdiff_t dA_row;

  // Each side's c (4H, N) += dA^T B; `also` may have N = 0. Both at once: dA is packed for the two of them.
  void product_share(Team& team, ptrdiff_t R, const int32_t* dA_order, RightSide<T> side, RightSide<T> also,
                     T* scratch) const {
    product_share(k, team, R, dA, dA_row, dA_order, side, also, scratch);
  }
  // The same with dA and B of another type.
  template <class Table, class Operand>
  void product_share(const Table& table, Team& team, ptrdiff_t R, const Operand* a, ptrdiff_t a_row,
                     const int32_t* a_order, RightSideOf<Operand, T> side, RightSideOf<Operand, T> also,
                     Operand* scratch) const {
    // Padding between the gates is skipped; without any, the four gates are one product.
    const ptrdiff_t products = H == H_pad ? 1 : 4, M = 4 * H / products;
    for (ptrdiff_t p = 0; p < products; ++p) {
      gemm_transposed_share(table,
                            {.M = M,
                             .R = R,
                             .a = a + p * H_pad,
                             .a_row = a_row,
                             .a_rows = a_order,
                             .side = side,
                             .scratch = scratch,
                             .also = also,
                             .packed = p > 0},
                            team);
      side.c += M * side.c_row;
      also.c += M * also.c_row;
    }
  }
  // sums (4, H_pad) += the rows of dA
  void bias_sums_share(const Team& team, ptrdiff_t R, const int32_t* dA_order, T* sums) const {
    const Share columns = share_of(4 * H_pad, team.thread(), team.threads(), 16);
    if (columns.size() > 0)
      k.add_rows(R, columns.size(), dA + columns.begin, dA_row, dA_order, sums + columns.begin);
  }
};

// Both biases (4H) += sums (4, H_pad).
template <class T>
void add_bias_gradients(const Kernels<T>& k, ptrdiff_t H, ptrdiff_t H_pad, const T* sums, T* d_bias_ih,
                        T* d_bias_hh) {
  for (ptrdiff_t gate = 0; gate < 4; ++gate) {
    k.add(H, sums + gate * H_pad, d_bias_ih + gate * H);
    k.add(H, sums + gate * H_pad, d_bias_hh + gate * H);
  }
}

}  // namespace fusedlstm
