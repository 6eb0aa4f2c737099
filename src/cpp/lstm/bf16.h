// One LSTM step on bfloat16 operands: h_{t-1} and R are rounded, sums, gates and c are float32.
#pragma once

#include <algorithm>

#include "lstm/packing.h"

namespace fusedlstm {

// The step that `s` describes, but for its product: input + R h_prev goes to `sums` (M, 4, H_pad), which may
// be the input itself, and the rounded h_t to h_next. Rows of h_prev and h_next are h_row apart.
inline void cell_forward_bf16(const Level& level, const PackedLayer<float>& layer, CellForward<float> s,
                              float* sums, ptrdiff_t sums_row, const uint16_t* h_prev, uint16_t* h_next,
                              ptrdiff_t h_row) {
  const ptrdiff_t panel = low_padded(s.H) * kLowPanel, gate_panels = s.H_pad / kLowPanel;
  // Few rows: whole gates at a time. Many: blocks whose sums stay in the first-level cache for the gates.
  constexpr ptrdiff_t few_rows = 4, rows_together = 64;
  const bool few = s.M <= few_rows;
  const ptrdiff_t units_together = few ? s.unit_end - s.unit_begin : kLowPanel;
  for (ptrdiff_t u = s.unit_begin; u < s.unit_end; u += units_together) {
    for (ptrdiff_t m = 0; m < s.M; m += rows_together) {
      CellForward<float> part = s;
      part.M = std::min(rows_together, s.M - m);
      part.unit_begin = u;
      part.unit_end = u + units_together;
      GemmBf16 product{.M = part.M,
                       .N = units_together,
                       .K = s.H,
                       .a = h_prev + m * h_row,
                       .a_row = h_row,
                       .b = layer.bf16.recurrent.data() + u / kLowPanel * panel,
                       .b_panel = panel,
                       .init = s.input + m * s.input_row + u,
                       .init_row = s.input_row,
                       .c = sums + m * sums_row + u,
                       .c_row = sums_row};
      if (few) {
        for (int gate = 0; gate < 4; ++gate) {
          level.bf16.gemm(product);
          product.b += gate_panels * panel;
          product.init += s.H_pad;
          product.c += s.H_pad;
        }
      } else {  // one panel of each gate
        product.N = 4 * kLowPanel;
        product.b_panel = gate_panels * panel;
        product.c_panel = s.H_pad;
        level.bf16.gemm(product);
      }
      part.recurrent = nullptr;
      part.input = sums + m * sums_row;
      part.input_row = sums_row;
      if (s.gates) part.gates += m * s.gates_row;
      part.c_prev += m * s.c_row;
      part.c += m * s.c_row;
      part.h += m * s.h_row;
      level.f32.cell_forward(part);
      const ptrdiff_t padded = part.unit_end == s.H_pad ? low_padded(s.H) - u : units_together;
      level.bf16.round_rows(part.M, units_together, padded, part.h + u, s.h_row, h_next + m * h_row + u,
                            h_row);
    }
  }
}

}  // namespace fusedlstm
