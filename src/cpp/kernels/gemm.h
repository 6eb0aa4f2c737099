// C = init + A B on packed panels. Every element of C is one chain of fused multiply-adds in the order of k:
//
//   c = init;  for k = 0 .. K-1:  c = fma(A[m][k], B[k][n], c)
//
// A chain is never split into partial sums, so no result depends on how rows, columns or k are cut into
// tiles, blocks or threads, nor on the width of a vector. (Stopping a chain, storing c and going on later
// changes nothing.)
//
// B lies in panels of kPanel columns, panel p as [k][kPanel], zero in the columns past the last.
#pragma once

#include "kernels/simd.h"
#include "kernels/table.h"

namespace fusedlstm {
namespace {

template <class T>
constexpr int kPanel = 2 * kLanes<T>;

// A by rows that lie a_row apart, or interleaved as [k][kTileRows].
enum class LayoutA { kRows, kInterleaved };

// B in panels, or in blocks of two panels side by side, [k][2 kPanel]; they lie b_panel apart.
enum class LayoutB { kPanels, kBlocks };

// M rows x V vectors of C stay in registers over the whole of k. Meanwhile K vectors from `ahead` on are
// fetched: a part of B that is needed next.
template <class T, int M, int V, LayoutA A, LayoutB B = LayoutB::kPanels>
FUSEDLSTM_INLINE void tile(ptrdiff_t K, const T* a, ptrdiff_t a_row, const T* b, ptrdiff_t b_panel,
                           const T* init, ptrdiff_t init_row, T* c, ptrdiff_t c_row, const T* ahead) {
  constexpr int W = kLanes<T>, together = B == LayoutB::kPanels ? 2 : 4;  // vectors side by side in B
  Vec<T> acc[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[m][v] = init ? load(init + m * init_row + v * W) : Vec<T>{};
  }
  // Unrolled: where a core's other hardware thread is busy, the limit is the number of instructions.
#pragma GCC unroll 4
  for (ptrdiff_t k = 0; k < K; ++k) {
    Vec<T> b_k[V];
    if (M > kTileRows / 2) __builtin_prefetch(ahead + k * W, 0, 2);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) b_k[v] = load(b + v / together * b_panel + v % together * W);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Vec<T> a_mk = broadcast<T>(A == LayoutA::kRows ? a[m * a_row] : a[m]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) acc[m][v] = fma(a_mk, b_k[v], acc[m][v]);
    }
    a += A == LayoutA::kRows ? 1 : kTileRows;
    b += together * W;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store<T>(c + m * c_row + v * W, acc[m][v]);
  }
}

// Columns from n on, V vectors of them. The last may be there only in part: it goes through a copy.
template <class T, int M, int V, LayoutA A>
void columns_tile(const Gemm<T>& g, ptrdiff_t m0, ptrdiff_t n, const T* ahead) {
  constexpr ptrdiff_t width = V * kLanes<T>;
  const T* const a = A == LayoutA::kRows ? g.a + m0 * g.a_row : g.a + m0 * g.K;
  const T* init = g.init ? g.init + m0 * g.init_row + n : nullptr;
  T* c = g.c + m0 * g.c_row + n;
  ptrdiff_t init_row = g.init_row, c_row = g.c_row;
  const ptrdiff_t columns = g.N - n;
  T edge[M * width];
  if (A == LayoutA::kInterleaved)  // the sums of the next tile: far apart and used once
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) __builtin_prefetch(c + (M + m) * c_row + v * kLanes<T>, 1);
  if (columns < width) {
    for (int m = 0; m < M; ++m)
      for (ptrdiff_t j = 0; j < width; ++j)
        edge[m * width + j] = init && j < columns ? init[m * init_row + j] : T(0);
    init = c = edge;
    init_row = c_row = width;
  }
  tile<T, M, V, A>(g.K, a, g.a_row, g.b + n / kPanel<T> * g.b_panel, g.b_panel, init, init_row, c, c_row,
                   ahead);
  if (c != edge) return;
  for (int m = 0; m < M; ++m)
    for (ptrdiff_t j = 0; j < columns; ++j) g.c[(m0 + m) * g.c_row + n + j] = edge[m * width + j];
}

// All columns of up to kTileRows rows. Few rows take more columns at a time: enough chains to hide the
// latency of fma.
template <class T, int M, LayoutA A>
void row_tile(const Gemm<T>& g, ptrdiff_t m0, const T* ahead) {
  constexpr int V = 2 * (M <= 3 ? 2 * kTilePanels : kTilePanels);
  constexpr ptrdiff_t W = kLanes<T>;
  const ptrdiff_t whole = g.N / (V * W) * (V * W);
  ptrdiff_t n = 0;
  for (; n < whole; n += V * W) columns_tile<T, M, V, A>(g, m0, g.descending ? whole - V * W - n : n, ahead);
  if (M > kTileRows / 2 && V == 4 && n + 2 * W < g.N) {
    if (n + 3 * W < g.N) return columns_tile<T, M, 4, A>(g, m0, n, ahead);
    return columns_tile<T, M, 3, A>(g, m0, n, ahead);
  }
  for (; n + W < g.N; n += 2 * W) columns_tile<T, M, 2, A>(g, m0, n, ahead);
  if (n < g.N) columns_tile<T, M, 1, A>(g, m0, n, ahead);
}

template <class T, LayoutA A, int M = kTileRows>
FUSEDLSTM_INLINE void rows(const Gemm<T>& g, ptrdiff_t m0, ptrdiff_t height, const T* ahead) {
  if (height == M) return row_tile<T, M, A>(g, m0, ahead);
  if constexpr (M > 1) rows<T, A, M - 1>(g, m0, height, ahead);
}

template <class V>
FUSEDLSTM_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}

// For all panel groups, then for all row tiles: a group of B stays in L2 while the rows pass by.
template <class T, LayoutA A>
void gemm_panels_outer(const Gemm<T>& g) {
  constexpr ptrdiff_t group = kTilePanels * kPanel<T>;
  for (ptrdiff_t n = 0; n < g.N; n += group) {
    Gemm<T> part = g;
    part.N = smaller(group, g.N - n);
    part.b += n / kPanel<T> * g.b_panel;
    part.c += n;
    if (g.init) part.init += n;
    const T* const next = n + group < g.N ? part.b + kTilePanels * g.b_panel : g.b;
    for (ptrdiff_t m = 0, height, quarter = 0; m < g.M; m += height, quarter = (quarter + 1) % 4) {
      height = A == LayoutA::kRows ? tile_rows(g.M - m, kTileRows) : smaller<ptrdiff_t>(kTileRows, g.M - m);
      rows<T, A>(part, m, height, next + quarter / 2 * g.b_panel + quarter % 2 * (g.K * kLanes<T>));
    }
  }
}

// A block of A and a group of B, both block_k long, stay in L2 together; of more rows than gemm_in_pieces
// gives for most matrices, A comes from the next level.
template <class T>
void gemm(const Gemm<T>& whole) {
  constexpr ptrdiff_t block_k = 3072 / static_cast<ptrdiff_t>(sizeof(T)), block_m = 64 * kTileRows;
  Gemm<T> g = whole;
  if (g.b_panel == 0) g.b_panel = g.K * kPanel<T>;
  if (g.M <= kTileRows) return g.M > 0 ? rows<T, LayoutA::kRows>(g, 0, g.M, g.b) : void();
  for (ptrdiff_t m = 0; m < whole.M; m += block_m) {
    Gemm<T> part = g;
    part.M = smaller(block_m, whole.M - m);
    part.a += m * g.a_row;
    part.c += m * g.c_row;
    if (g.init) part.init += m * g.init_row;
    ptrdiff_t k = 0;
    do {
      part.K = smaller(block_k, whole.K - k);
      gemm_panels_outer<T, LayoutA::kRows>(part);
      part.a += part.K;
      part.b += part.K * kPanel<T>;
      part.init = part.c;
      part.init_row = part.c_row;
      k += part.K;
    } while (k < whole.K);
  }
}

// panel[k][j] = rows[j][k] for j < columns of a vector, 0 for the lanes past them. The rows of the panel are
// panel_row apart.
template <class T>
void pack_vector(ptrdiff_t K, ptrdiff_t columns, const T* rows, ptrdiff_t row_pitch, T* panel,
                 ptrdiff_t panel_row) {
  constexpr ptrdiff_t W = kLanes<T>;
  ptrdiff_t k = 0;
  for (; columns == W && k + W <= K; k += W) {
    Vec<T> square[W];
#pragma GCC unroll 16
    for (ptrdiff_t j = 0; j < W; ++j) square[j] = load(rows + j * row_pitch + k);
    transpose<T>(square);
#pragma GCC unroll 16
    for (ptrdiff_t j = 0; j < W; ++j) store<T>(panel + (k + j) * panel_row, square[j]);
  }
  for (; k < K; ++k)
    for (ptrdiff_t j = 0; j < W; ++j) panel[k * panel_row + j] = j < columns ? rows[j * row_pitch + k] : T(0);
}

// Row `from` of B, columns of one panel.
template <class T>
FUSEDLSTM_INLINE void copy_panel_row(const T* from, ptrdiff_t columns, T* panel) {
  if (columns == kPanel<T>) {
    store<T>(panel, load(from));
    store<T>(panel + kLanes<T>, load(from + kLanes<T>));
    return;
  }
  for (ptrdiff_t j = 0; j < columns; ++j) panel[j] = from[j];
  for (ptrdiff_t j = columns; j < kPanel<T>; ++j) panel[j] = T(0);
}

template <class T>
void pack(ptrdiff_t K, ptrdiff_t N, const T* source, ptrdiff_t pitch, SourceBy by, RowGroups groups,
          T* panels) {
  constexpr ptrdiff_t W = kLanes<T>, block = 16;
  if (by == SourceBy::kRows) {  // a few rows at a time: each is read from its begin to its end
    for (ptrdiff_t k0 = 0; k0 < K; k0 += block) {
      const ptrdiff_t count = smaller(block, K - k0), there = groups.there(k0, count);
      const T* const rows = source + groups.source(k0) * pitch;
      for (ptrdiff_t n0 = 0; n0 < N; n0 += kPanel<T>)
        for (ptrdiff_t k = 0; k < count; ++k)
          copy_panel_row(rows + k * pitch + n0, k < there ? smaller<ptrdiff_t>(kPanel<T>, N - n0) : 0,
                         panels + n0 * K + (k0 + k) * kPanel<T>);
    }
    return;
  }
  for (ptrdiff_t n0 = 0; n0 < N; n0 += kPanel<T>) {
    T* const panel = panels + n0 * K;
    for (ptrdiff_t n = n0; n < n0 + kPanel<T>; n += W)
      pack_vector<T>(K, n < N ? groups.there(n, smaller(W, N - n)) : 0, source + groups.source(n) * pitch,
                     pitch, panel + n - n0, kPanel<T>);
  }
}

// M columns of K rows of A, interleaved as tiles of [k][kTileRows], a few rows of all tiles at a time. The
// few lines of each row are too short a run for the hardware to fetch ahead.
template <class T>
void interleave(const GemmTransposed<T>& g, ptrdiff_t r0, ptrdiff_t K, ptrdiff_t m0, ptrdiff_t M, T* packed) {
  constexpr ptrdiff_t block = 16, line = 64 / static_cast<ptrdiff_t>(sizeof(T)), whole = 8;
  static_assert(whole >= kTileRows);
  const auto row = [&](ptrdiff_t k) { return g.a + (g.a_rows ? g.a_rows[r0 + k] : r0 + k) * g.a_row + m0; };
  for (ptrdiff_t k0 = 0; k0 < K; k0 += block) {
    const ptrdiff_t count = smaller(block, K - k0);
    const T* from[block];
    for (ptrdiff_t k = 0; k < count; ++k) {
      from[k] = row(k0 + k);
      if (k0 + block + k >= K) continue;
      const T* const next = row(k0 + block + k);
      for (ptrdiff_t m = 0; m < M; m += line) __builtin_prefetch(next + m);
    }
    for (ptrdiff_t m = 0; m < M; m += kTileRows) {
      const ptrdiff_t columns = smaller<ptrdiff_t>(kTileRows, M - m);
      T* to = packed + m * K + k0 * kTileRows;
      ptrdiff_t k = 0;
      // Whole vectors: what they write too much is of the next row, which comes after.
      for (; m + whole <= M && k + 1 < count; ++k, to += kTileRows)
        __builtin_memcpy(to, from[k] + m, whole * sizeof(T));
      for (; k < count; ++k, to += kTileRows)
        for (ptrdiff_t i = 0; i < columns; ++i) to[i] = from[k][m + i];
    }
  }
}

// C[m][n] += sum over rows r, in the order given, of A[r][m] B[r][n]: weight gradients. Rows are gathered
// into blocks of packed A and B; C is the running sum between blocks.
template <class T>
void gemm_transposed(const GemmTransposed<T>& g) {
  if (g.R <= 0) return;
  const RightSide<T> sides[] = {g.side, g.also};
  const ptrdiff_t blocks = (g.R + kReductionBlock - 1) / kReductionBlock,
                  row_block = (g.R + blocks - 1) / blocks;
  for (ptrdiff_t r0 = 0; r0 < g.R; r0 += row_block) {
    const ptrdiff_t K = smaller(row_block, g.R - r0);
    T* packed = g.scratch;
    for (const RightSide<T>& side : sides) {
      for (ptrdiff_t n0 = 0; n0 < side.N; n0 += kPanel<T>, packed += K * kPanel<T>) {
        const ptrdiff_t columns = smaller<ptrdiff_t>(kPanel<T>, side.N - n0);
        for (ptrdiff_t k = 0; k < K && !g.packed; ++k)
          copy_panel_row(side.b + (side.b_rows ? side.b_rows[r0 + k] : r0 + k) * side.b_row + n0, columns,
                         packed + k * kPanel<T>);
      }
    }
    T* const packed_a = packed;
    for (ptrdiff_t m0 = 0; m0 < g.M; m0 += kReductionColumns) {
      const ptrdiff_t M = smaller(kReductionColumns, g.M - m0);
      interleave(g, r0, K, m0, M, packed_a);
      const T* packed_b = g.scratch;
      for (const RightSide<T>& side : sides) {
        T* c = side.c + m0 * side.c_row;
        gemm_panels_outer<T, LayoutA::kInterleaved>({.M = M,
                                                     .N = side.N,
                                                     .K = K,
                                                     .a = packed_a,
                                                     .a_row = 0,
                                                     .b = packed_b,
                                                     .init = c,
                                                     .init_row = side.c_row,
                                                     .c = c,
                                                     .c_row = side.c_row,
                                                     .b_panel = K * kPanel<T>});
        packed_b += (side.N + kPanel<T> - 1) / kPanel<T> * kPanel<T> * K;
      }
    }
  }
}

}  // namespace
}  // namespace fusedlstm
