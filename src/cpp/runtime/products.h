// Matrix products as jobs of several threads: each takes a share. No choice here changes a bit of any result.
#pragma once

#include <algorithm>

#include "kernels/table.h"
#include "runtime/threads.h"

namespace fusedlstm {

// Elements of packed panels for a (K, N) matrix.
inline ptrdiff_t packed_size(ptrdiff_t K, ptrdiff_t N, ptrdiff_t panel) {
  return (N + panel - 1) / panel * panel * K;
}

// Products are made in pieces, with a look at Ctrl-C after each: some milliseconds of work, or some tenths of
// a second where fused multiply-adds are emulated. Every chain of a sum stops and goes on between pieces.
constexpr ptrdiff_t kPieceRows = 32 * kTileRows, kPieceColumns = 1024, kPieceDepth = 768;
constexpr ptrdiff_t kLargeMatrix = 16 << 20;  // bytes: read from memory for each piece, so for more rows
constexpr ptrdiff_t kPieceRowsBf16 = 256;
constexpr ptrdiff_t kPieceTransposed = 11 * kReductionColumns;  // columns of A

template <class T>
void gemm_in_pieces(const Kernels<T>& kernels, const Gemm<T>& g, Team& team) {
  const ptrdiff_t b_panel = g.b_panel ? g.b_panel : g.K * kernels.panel;
  const ptrdiff_t times = g.K * g.N * static_cast<ptrdiff_t>(sizeof(T)) > kLargeMatrix ? 2 : 1,
                  rows = times * kPieceRows, columns = kPieceColumns / times;
  for (ptrdiff_t m = 0; m < g.M; m += rows) {
    for (ptrdiff_t k = 0; k < std::max<ptrdiff_t>(g.K, 1); k += kPieceDepth) {
      for (ptrdiff_t n = 0; n < g.N; n += columns) {
        T* const c = g.c + m * g.c_row + n;
        const T* const init = g.init ? g.init + m * g.init_row + n : nullptr;
        kernels.gemm({.M = std::min(rows, g.M - m),
                      .N = std::min(columns, g.N - n),
                      .K = std::min(kPieceDepth, g.K - k),
                      .a = g.a + m * g.a_row + k,
                      .a_row = g.a_row,
                      .b = g.b + n / kernels.panel * b_panel + k * kernels.panel,
                      .init = k > 0 ? c : init,
                      .init_row = k > 0 ? g.c_row : g.init_row,
                      .c = c,
                      .c_row = g.c_row,
                      .b_panel = b_panel});
        team.poll();
      }
    }
  }
}

// A thread's share of one matrix product: rows when there are enough of them, else panels of columns.
template <class T>
void gemm_share(const Kernels<T>& k, Gemm<T> g, Team& team) {
  if (g.M >= kTileRows * team.threads()) {
    const Share rows = share_of(g.M, team.thread(), team.threads(), kTileRows);
    g.M = rows.size();
    g.a += rows.begin * g.a_row;
    if (g.init) g.init += rows.begin * g.init_row;
    g.c += rows.begin * g.c_row;
  } else {
    const Share columns = share_of(g.N, team.thread(), team.threads(), k.panel);
    g.N = columns.size();
    g.b += columns.begin / k.panel * (g.b_panel ? g.b_panel : g.K * k.panel);
    if (g.init) g.init += columns.begin;
    g.c += columns.begin;
  }
  if (g.N <= 0) return;
  gemm_in_pieces<T>(k, g, team);
}

// The same on bfloat16 operands.
inline void gemm_share(const Bf16Kernels& k, GemmBf16 g, Team& team) {
  constexpr ptrdiff_t rows_together = 32;
  if (g.M >= rows_together * team.threads()) {
    const Share rows = share_of(g.M, team.thread(), team.threads(), rows_together);
    g.M = rows.size();
    g.a += rows.begin * g.a_row;
    if (g.init) g.init += rows.begin * g.init_row;
    g.c += rows.begin * g.c_row;
  } else {
    const Share columns = share_of(g.N, team.thread(), team.threads(), kLowPanel);
    g.N = columns.size();
    g.b += columns.begin / kLowPanel * g.b_panel;
    if (g.init) g.init += columns.begin / kLowPanel * g.c_panel;
    g.c += columns.begin / kLowPanel * g.c_panel;
  }
  if (g.N <= 0) return;
  static_assert(kPieceDepth % kLowBlock == 0, "the order of a sum counts k in blocks");
  for (ptrdiff_t m = 0; m < g.M; m += kPieceRowsBf16) {
    for (ptrdiff_t depth = 0; depth < g.K; depth += kPieceDepth) {
      for (ptrdiff_t n = 0; n < g.N; n += kPieceColumns) {
        const ptrdiff_t c_at = m * g.c_row + n / kLowPanel * g.c_panel;
        GemmBf16 piece = g;
        piece.M = std::min(kPieceRowsBf16, g.M - m);
        piece.N = std::min(kPieceColumns, g.N - n);
        piece.K = std::min(kPieceDepth, g.K - depth);
        piece.a += m * g.a_row + depth;
        piece.b += n / kLowPanel * g.b_panel + depth / 2 * g.b_step;
        piece.c += c_at;
        if (depth > 0) {
          piece.init = piece.c;
          piece.init_row = g.c_row;
        } else if (g.init) {
          piece.init += m * g.init_row + n / kLowPanel * g.c_panel;
        }
        k.gemm(piece);
        team.poll();
      }
    }
  }
}

// The same on int8 operands.
inline void gemm_share(const Int8Kernels& k, GemmInt8 g, Team& team) {
  constexpr ptrdiff_t rows_together = 64, columns_together = kPieceColumns / 4;  // a sum may be long
  const bool by_rows = g.M >= rows_together * team.threads();
  const Share rows = by_rows ? share_of(g.M, team.thread(), team.threads(), 4) : Share{0, g.M};
  const Share columns = by_rows ? Share{0, g.N} : share_of(g.N, team.thread(), team.threads(), kLowPanel);
  for (ptrdiff_t m = rows.begin; m < rows.end; m += rows_together) {
    for (ptrdiff_t n = columns.begin; n < columns.end; n += columns_together) {
      const ptrdiff_t at = n / kLowPanel * g.c_panel;
      GemmInt8 piece = g;
      piece.M = std::min(rows_together, rows.end - m);
      piece.N = std::min(columns_together, columns.end - n);
      piece.a += m * g.a_row;
      piece.b += n / kLowPanel * g.b_panel;
      piece.init += m * g.init_row + at;
      piece.c += m * g.c_row + at;
      piece.column_scale += at;
      if (g.row_scale) piece.row_scale += m;
      k.gemm(piece);
      team.poll();
    }
  }
}

// A thread's share of rows rounded to bfloat16.
inline void round_rows_share(const Bf16Kernels& k, ptrdiff_t rows, ptrdiff_t n, const float* x,
                             ptrdiff_t x_row, uint16_t* y, ptrdiff_t y_row, const Team& team) {
  const Share share = share_of(rows, team.thread(), team.threads());
  k.round_rows(share.size(), n, low_padded(n), x + share.begin * x_row, x_row, y + share.begin * y_row,
               y_row);
}

// A thread's share of C (M, N) += A^T B for one or two B: columns of A, `grain` of them at least. `scratch`
// is the thread's own.
template <class Kernel, class Product>
void gemm_transposed_share(const Kernel& gemm_transposed, Product g, ptrdiff_t grain, Team& team) {
  static_assert(kReductionBlock % kLowBlock == 0, "the order of a sum of bfloat16 counts rows in blocks");
  const Share m = share_of(g.M, team.thread(), team.threads(), grain);
  const ptrdiff_t blocks = std::max<ptrdiff_t>((g.R + kReductionBlock - 1) / kReductionBlock, 1),
                  rows = low_padded((g.R + blocks - 1) / blocks);
  const bool packed = g.packed && blocks == 1;
  for (ptrdiff_t r0 = 0; r0 < g.R; r0 += rows) {
    for (ptrdiff_t m0 = m.begin; m0 < m.end; m0 += kPieceTransposed) {
      Product piece = g;
      piece.M = std::min(kPieceTransposed, m.end - m0);
      piece.R = std::min(rows, g.R - r0);
      piece.packed = packed || m0 > m.begin;
      const auto from_row = [&](auto& x, auto& order, ptrdiff_t x_row) {
        if (order)
          order += r0;
        else
          x += r0 * x_row;
      };
      from_row(piece.a, piece.a_rows, g.a_row);
      piece.a += m0;
      for (auto* side : {&piece.side, &piece.also}) {
        if (side->N == 0) continue;
        from_row(side->b, side->b_rows, side->b_row);
        side->c += m0 * side->c_row;
      }
      gemm_transposed(piece);
      team.poll();
    }
  }
}
template <class T>
void gemm_transposed_share(const Kernels<T>& k, const GemmTransposed<T>& g, Team& team) {
  gemm_transposed_share(k.gemm_transposed, g, kTileRows, team);
}
inline void gemm_transposed_share(const Bf16Kernels& k, const GemmTransposedBf16& g, Team& team) {
  gemm_transposed_share(k.gemm_transposed, g, kLowPanel, team);
}

}  // namespace fusedlstm
