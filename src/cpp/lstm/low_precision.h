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

// Of a product with the recurrent weights: all gates of `units` units, in blocks of kLowPanel that follow
// each other from u on, or come before it in turn.
template <class Product>
Product gates_of_units(Product g, LowLayout layout, ptrdiff_t H_pad, ptrdiff_t u, ptrdiff_t units,
                       bool descending = false) {
  const LowLayout four = four_gates(layout);
  const ptrdiff_t direction = descending ? -1 : 1;
  g.N = kLowGates * kLowPanel;
  g.b += u / kLowPanel * four.panel;
  g.b_panel = layout.step;
  g.b_step = four.step;
  g.b_block = direction * four.panel;
  g.init += u;
  g.c += u;
  g.c_panel = H_pad;
  g.c_block = direction * kLowPanel;
  g.blocks = units / kLowPanel;
  return g;
}

// The step that `s` describes, but for its product: input + R h_{t-1} goes to `sums` (M, 4, H_pad), which may
// be the input itself, and the rounded h_t to h_next. Row m of `s` is row first + m stride of h_prev and
// h_next. With int8, h_prev times row_scale is h_{t-1}, where it is given.
inline void low_cell_forward(const Level& level, const PackedLayer<float>& layer, CellForward<float> s,
                             float* sums, ptrdiff_t sums_row, const LowRows& h_prev, LowRows& h_next,
                             ptrdiff_t first, ptrdiff_t stride, const float* row_scale = nullptr) {
  // Few rows: the gates of several blocks of units at a time. Many: of one, whose sums stay in the
  // first-level cache for them.
  constexpr ptrdiff_t few_rows = 4, rows_together = 64;
  const ptrdiff_t units = s.unit_end - s.unit_begin,
                  most_together = s.M <= few_rows ? 8 * kLowPanel : kLowPanel;
  for (ptrdiff_t done = 0, units_together; done < units; done += units_together) {
    units_together = std::min(most_together, units - done);
    const ptrdiff_t begin = s.descending ? s.unit_end - done - units_together : s.unit_begin + done;
    for (ptrdiff_t m = 0; m < s.M; m += rows_together) {
      CellForward<float> part = s;
      part.M = std::min(rows_together, s.M - m);
      part.unit_begin = begin;
      part.unit_end = begin + units_together;
      const auto of_rows = [&](auto product) {
        product.M = part.M;
        product.a += (first + m * stride) * product.a_row;
        product.a_row *= stride;
        product.init = s.input + m * s.input_row;
        product.init_row = s.input_row;
        product.c = sums + m * sums_row;
        product.c_row = sums_row;
        return product;
      };
      const ptrdiff_t first_block = s.descending ? part.unit_end - kLowPanel : begin,
                      next = s.descending ? std::max(begin - kLowPanel, s.unit_begin)
                                          : std::min(part.unit_end, s.unit_end - kLowPanel);
      PartTimer timer(s.ticks);
      const auto of_units = [&](auto product, LowLayout layout, ptrdiff_t u) {
        return gates_of_units(product, layout, s.H_pad, u, units_together, s.descending);
      };
      if (h_prev.bf16.size()) {
        const GemmBf16 whole = of_rows(bf16_product(h_prev, layer.low_recurrent));
        GemmBf16 product = of_units(whole, bf16_layout(s.H), first_block);
        product.ahead = of_units(whole, bf16_layout(s.H), next).b;
        level.bf16.gemm(product);
      } else {
        GemmInt8 product =
            of_units(of_rows(int8_product(h_prev, layer.low_recurrent)), int8_layout(s.H), first_block);
        product.column_scale += first_block;
        if (row_scale) product.row_scale = row_scale + m;
        level.int8.gemm(product);
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
      h_next.round_units(level, first + m * stride, stride, part.M, begin, units_together, part.h + begin,
                         s.h_row);
    }
  }
}

}  // namespace fusedlstm
