// The products of a layer whose operands are rounded to bfloat16 or int8. Sums, gates and c are float32.
#pragma once

#include <algorithm>

#include "kernels/ticks.h"
#include "lstm/packing.h"
#include "runtime/products.h"

namespace fusedlstm {

// A thread's share of to (rows, N) = init + W x, which may be init itself.
inline void low_matrix_share(const Level& level, const LowMatrix& weights, ptrdiff_t N, const LowRows& x,
                             ptrdiff_t rows, bool hidden, const float* init, ptrdiff_t init_row, float* to,
                             ptrdiff_t to_row, Team& team) {
  const auto fill = [&](auto product) {
    product.M = rows;
    product.N = N;
    product.init = init;
    product.init_row = init_row;
    product.c = to;
    product.c_row = to_row;
    return product;
  };
  if (x.bf16.size()) {
    gemm_share(level.bf16, fill(bf16_product(x, weights)), team);
  } else {
    GemmInt8 product = fill(int8_product(x, weights));
    product.row_scale = hidden ? nullptr : x.scale.data();
    gemm_share(level.int8, product, team);
  }
}

// A thread's share of to (rows, 4, H_pad) = W x + b.
inline void low_input_share(const Level& level, const PackedLayer<float>& layer, const LowRows& x,
                            ptrdiff_t rows, bool hidden, float* to, ptrdiff_t to_row, Team& team) {
  low_matrix_share(level, layer.low_input, layer.bias.size(), x, rows, hidden, layer.bias.data(), 0, to,
                   to_row, team);
}

// The step that `s` describes, but for its product: input + R h_{t-1} goes to `sums` (M, 4, H_pad), which may
// be the input itself, and the rounded h_t to h_next. Row m of `s` is row first + m stride of h_prev and
// h_next. With int8, h_prev times row_scale is h_{t-1}, where it is given.
inline void low_cell_forward(const Level& level, const PackedLayer<float>& layer, CellForward<float> s,
                             float* sums, ptrdiff_t sums_row, const LowRows& h_prev, LowRows& h_next,
                             ptrdiff_t first, ptrdiff_t stride, const float* row_scale = nullptr) {
  // Few rows: several panels of each gate at a time. Many: blocks whose sums stay in the first-level cache
  // for the gates.
  constexpr ptrdiff_t few_rows = 4, rows_together = 64;
  const bool few = s.M <= few_rows;
  const ptrdiff_t gate_panels = s.H_pad / kLowPanel, units = s.unit_end - s.unit_begin,
                  most_together = few ? 8 * kLowPanel : kLowPanel;
  for (ptrdiff_t done = 0, units_together; done < units; done += units_together) {
    units_together = std::min(most_together, units - done);
    const ptrdiff_t u = s.descending ? s.unit_end - done - units_together : s.unit_begin + done;
    const ptrdiff_t next = s.descending ? std::max(u - units_together, s.unit_begin)
                                        : std::min(u + units_together, s.unit_end - units_together);
    for (ptrdiff_t m = 0; m < s.M; m += rows_together) {
      CellForward<float> part = s;
      part.M = std::min(rows_together, s.M - m);
      part.unit_begin = u;
      part.unit_end = u + units_together;
      const auto multiply = [&](auto product, const auto& gemm) {
        product.M = part.M;
        product.a += (first + m * stride) * product.a_row;
        product.a_row *= stride;
        product.b += u / kLowPanel * product.b_panel;
        product.init = s.input + m * s.input_row + u;
        product.init_row = s.input_row;
        product.c = sums + m * sums_row + u;
        product.c_row = sums_row;
        if (!few) {  // one panel of each gate
          product.N = 4 * kLowPanel;
          product.b_panel *= gate_panels;
          product.c_panel = s.H_pad;
          gemm(product, ptrdiff_t{0});
          return;
        }
        product.N = units_together;
        for (ptrdiff_t gate = 0; gate < 4; ++gate) {
          gemm(product, gate * s.H_pad);
          product.b += gate_panels * product.b_panel;
          product.init += s.H_pad;
          product.c += s.H_pad;
        }
      };
      PartTimer timer(s.ticks);
      if (h_prev.bf16.size()) {
        GemmBf16 product = bf16_product(h_prev, layer.low_recurrent);
        if (!few) product.ahead = product.b + next / kLowPanel * product.b_panel;
        multiply(product, [&](const GemmBf16& part_of_it, ptrdiff_t) { level.bf16.gemm(part_of_it); });
      } else {
        multiply(int8_product(h_prev, layer.low_recurrent), [&](GemmInt8 product, ptrdiff_t column) {
          product.column_scale += u + column;
          if (row_scale) product.row_scale = row_scale + m;
          level.int8.gemm(product);
        });
      }
      timer.end(&StepTicks::recurrent);
      part.recurrent = nullptr;
      part.input = sums + m * sums_row;
      part.input_row = sums_row;
      if (s.gates) part.gates += m * s.gates_row;
      part.c_prev += m * s.c_row;
      part.c += m * s.c_row;
      part.h += m * s.h_row;
      level.f32.cell_forward(part);
      h_next.round_units(level, first + m * stride, stride, part.M, u, units_together, part.h + u, s.h_row);
    }
  }
}

}  // namespace fusedlstm
