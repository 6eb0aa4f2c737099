// Products of bfloat16 matrices with float32 sums.
//
// Every element of C is one sum in an order that depends on its k alone, never on rows, columns, tiles,
// blocks or threads. There are three orders, one for each way in which hardware multiplies bfloat16:
//
//   Widened (this file)      c = fma(a[k], b[k], c) for k = 0, 1, 2 ...
//   AVX512-BF16              the same, k = 1, 0, 3, 2 ...                          bf16_dot.cpp
//   AMX                      blocks of 32 k, even and odd k apart                  bf16_amx.cpp
//
// A product of two bfloat16 numbers is exact in float32. Sums may be stored and taken up again at any
// multiple of kLowBlock.
#pragma once

#include "kernels/simd.h"
#include "kernels/table.h"

namespace fusedlstm {
namespace {

// To nearest, ties to even; NaN stays NaN.
FUSEDLSTM_INLINE uint16_t to_bf16(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16, quiet = (u >> 16) | 0x40;
  return static_cast<uint16_t>((u & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

void round_rows(ptrdiff_t rows, ptrdiff_t n, ptrdiff_t padded, const float* x, ptrdiff_t x_row, uint16_t* y,
                ptrdiff_t y_row) {
  for (ptrdiff_t r = 0; r < rows; ++r, x += x_row, y += y_row) {
    for (ptrdiff_t j = 0; j < n; ++j) y[j] = to_bf16(x[j]);
    for (ptrdiff_t j = n; j < padded; ++j) y[j] = 0;
  }
}

// kLanes<float> pairs of bfloat16 are moved about as the bits of a Vec<float>.
using PairBits = typename VecTypes<float>::unsigned_ints;
typedef uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t UnalignedHalfBits __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
typedef float UnalignedPairs __attribute__((vector_size(kVectorBytes), aligned(2), may_alias));

FUSEDLSTM_INLINE Vec<float> load_pairs(const uint16_t* p) {
  return *reinterpret_cast<const UnalignedPairs*>(p);
}
FUSEDLSTM_INLINE void store_pairs(uint16_t* p, Vec<float> pairs) {
  *reinterpret_cast<UnalignedPairs*>(p) = pairs;
}
// even[0] odd[0] even[1] odd[1] ...
FUSEDLSTM_INLINE Vec<float> zip(const uint16_t* even, const uint16_t* odd) {
  const HalfBits e = *reinterpret_cast<const UnalignedHalfBits*>(even);
  const HalfBits o = *reinterpret_cast<const UnalignedHalfBits*>(odd);
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(e, PairBits) |
                                      __builtin_convertvector(o, PairBits) << 16);
}

template <class T>
FUSEDLSTM_INLINE T least(T a, T b) {
  return a < b ? a : b;
}

// kLowPanel rows of n columns, zeros up to `padded`; of the rows so many are there, the others are zeros.
FUSEDLSTM_INLINE void round_some_rows(ptrdiff_t there, ptrdiff_t n, ptrdiff_t padded, const float* x,
                                      ptrdiff_t x_row, uint16_t* y) {
  if (n == padded)
    round_rows(there, padded, padded, x, x_row, y, padded);
  else
    round_rows(there, n, padded, x, x_row, y, padded);
  for (ptrdiff_t j = there * padded; j < kLowPanel * padded; ++j) y[j] = 0;
}

void pack_bf16(ptrdiff_t K, ptrdiff_t N, const float* source, ptrdiff_t pitch, SourceBy by, RowGroups groups,
               uint16_t* panels, LowLayout layout) {
  constexpr ptrdiff_t W = kLanes<float>, block = 2 * W;
  static_assert(kLowBlock % block == 0);
  if (by == SourceBy::kRows) {  // a few rows at a time: each is read from its begin to its end
    for (ptrdiff_t k0 = 0; k0 < low_padded(K); k0 += kLowPanel) {
      const ptrdiff_t there = k0 < K ? groups.there(k0, least(kLowPanel, K - k0)) : 0;
      const float* const rows = source + groups.source(k0) * pitch;
      for (ptrdiff_t n0 = 0; n0 < N; n0 += kLowPanel) {
        uint16_t rounded[kLowPanel * kLowPanel];
        round_some_rows(there, least(kLowPanel, N - n0), kLowPanel, rows + n0, pitch, rounded);
        uint16_t* const to = panels + n0 / kLowPanel * layout.panel + k0 / 2 * layout.step;
        for (ptrdiff_t k = 0; k < kLowPanel; k += 2)
          for (ptrdiff_t j = 0; j < kLowPanel; j += W)
            store_pairs(to + k / 2 * layout.step + 2 * j,
                        zip(rounded + k * kLowPanel + j, rounded + (k + 1) * kLowPanel + j));
      }
    }
    return;
  }
  for (ptrdiff_t n0 = 0; n0 < N; n0 += kLowPanel, panels += layout.panel) {
    const ptrdiff_t there = groups.there(n0, least(kLowPanel, N - n0));
    const float* const columns = source + groups.source(n0) * pitch;
    for (ptrdiff_t k = 0; k < low_padded(K); k += block) {
      uint16_t rounded[kLowPanel * block];
      for (ptrdiff_t j = 0; j < there; ++j)  // short runs of many rows
        for (ptrdiff_t i = 0; i < block; i += 16) __builtin_prefetch(columns + j * pitch + k + 8 * block + i);
      round_some_rows(there, k < K ? least(block, K - k) : 0, block, columns + k, pitch, rounded);
      for (ptrdiff_t j = 0; j < kLowPanel; j += W) {
        Vec<float> square[W];
#pragma GCC unroll 16
        for (ptrdiff_t i = 0; i < W; ++i) square[i] = load_pairs(rounded + (j + i) * block);
        transpose<float>(square);
#pragma GCC unroll 16
        for (ptrdiff_t i = 0; i < W; ++i) store_pairs(panels + (k / 2 + i) * layout.step + 2 * j, square[i]);
      }
    }
  }
}

constexpr ptrdiff_t kDepth = 24 * kLowBlock;  // most k at a time

// The products of one pair of k for M rows and P panels, by fused multiply-add in float32. Rows of A are
// widened beforehand: each element is needed for every panel.
struct Widened {
  using Element = float;
  static constexpr int W = kLanes<float>, V = static_cast<int>(kLowPanel) / W;  // vectors of a panel
#if defined(FUSEDLSTM_LEVEL_AVX512)
  static constexpr int kRows = 6, kPanels = 4;
#elif defined(FUSEDLSTM_LEVEL_GENERIC)
  static constexpr int kRows = 2, kPanels = 1;
#else
  static constexpr int kRows = 6, kPanels = 1;
#endif

  static FUSEDLSTM_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(FUSEDLSTM_LEVEL_GENERIC)
    return a * b + c;  // no emulation of fma: the product is exact
#else
    return fma(a, b, c);
#endif
  }

  template <int M, int P>
  static FUSEDLSTM_INLINE void step(Vec<float> (&acc)[M][P * V], const float* a, ptrdiff_t a_row,
                                    const uint16_t* b, ptrdiff_t b_panel) {
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      Vec<float> b_k[P * V];
#pragma GCC unroll 16
      for (int v = 0; v < P * V; ++v) {
        const PairBits pairs =
            reinterpret_cast<PairBits>(load_pairs(b + (v / V) * b_panel + (v % V) * 2 * W));
        b_k[v] = reinterpret_cast<Vec<float>>(odd ? pairs & 0xffff0000u : pairs << 16);
      }
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const Vec<float> a_all = broadcast<float>(a[m * a_row + odd]);
#pragma GCC unroll 16
        for (int v = 0; v < P * V; ++v) acc[m][v] = multiply_add(a_all, b_k[v], acc[m][v]);
      }
    }
  }
};

// g with its rows of A in the form that Pair takes.
template <class Pair>
struct VectorGemm : GemmBf16 {
  const typename Pair::Element* elements;
  ptrdiff_t elements_row;
};

template <class Pair, int M, int P>
FUSEDLSTM_INLINE void bf16_tile(const VectorGemm<Pair>& g, const uint16_t* ahead) {
  constexpr int W = kLanes<float>, V = static_cast<int>(kLowPanel) / W;
  const auto column = [&](int v) { return (v / V) * g.c_panel + (v % V) * W; };
  Vec<float> acc[M][P * V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < P * V; ++v)
      acc[m][v] = g.init ? load(g.init + m * g.init_row + column(v)) : Vec<float>{};
  }
  for (int m = 0; m < M; ++m)  // the sums of the next tile
    for (int v = 0; v < P * V; ++v) __builtin_prefetch(g.c + (M + m) * g.c_row + column(v), 1);
  const typename Pair::Element* a = g.elements;
  const uint16_t* b = g.b;
  for (ptrdiff_t k = 0; k < g.K; k += 2, a += 2, b += g.b_step) {
    if (P == Pair::kPanels && M > Pair::kRows / 2) {
      __builtin_prefetch(ahead, 0, 2);
      ahead += g.b_step;
    }
    Pair::template step<M, P>(acc, a, g.elements_row, b, g.b_panel);
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < P * V; ++v) store<float>(g.c + m * g.c_row + column(v), acc[m][v]);
  }
}

// g with its rows or its columns begun further on.
FUSEDLSTM_INLINE GemmBf16 from_row(GemmBf16 g, ptrdiff_t m) {
  g.M -= m;
  g.a += m * g.a_row;
  if (g.init) g.init += m * g.init_row;
  g.c += m * g.c_row;
  return g;
}
FUSEDLSTM_INLINE GemmBf16 from_panel(GemmBf16 g, ptrdiff_t p) {
  g.N -= p * kLowPanel;
  g.b += p * g.b_panel;
  if (g.init) g.init += p * g.c_panel;
  g.c += p * g.c_panel;
  return g;
}

template <class Pair, int P, int M>
FUSEDLSTM_INLINE void bf16_rows(const VectorGemm<Pair>& g, ptrdiff_t height, const uint16_t* ahead) {
  if (height == M) return bf16_tile<Pair, M, P>(g, ahead);
  if constexpr (M > 1) bf16_rows<Pair, P, M - 1>(g, height, ahead);
}

// All rows, in tiles of up to Most that are as equal as can be. Each fetches a panel of those ahead.
template <class Pair, int P, int Most>
void bf16_row_tiles(VectorGemm<Pair> g) {
  const uint16_t* const next = g.ahead ? g.ahead : g.b + P * g.b_panel;
  for (ptrdiff_t panel = 0; g.M > 0; panel = (panel + 1) % P) {
    const ptrdiff_t height = tile_rows(g.M, Most);
    bf16_rows<Pair, P, Most>(g, height, next + panel * g.b_panel);
    g.elements += height * g.elements_row;
    static_cast<GemmBf16&>(g) = from_row(g, height);
  }
}

// Whole panels by vectors: a group of panels of B stays in the cache while the rows pass by.
template <class Pair>
struct ByVectors {
  // Of one row, two blocks at a time: as many chains as hide the latency of its sums.
  static constexpr bool kTwoBlocks =
      Pair::kPanels == kLowGates && sizeof(typename Pair::Element) == sizeof(uint16_t);
  static void two_blocks(const GemmBf16& g) {
    constexpr int P = kLowGates;
    Vec<float> acc[2][1][P];
    const auto column = [&](int block, int p) { return block * g.c_block + p * g.c_panel; };
#pragma GCC unroll 2
    for (int block = 0; block < 2; ++block) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) acc[block][0][p] = g.init ? load(g.init + column(block, p)) : Vec<float>{};
    }
    const uint16_t *a = g.a, *b = g.b, *next_b = g.b + g.b_block;
    for (ptrdiff_t k = 0; k < g.K; k += 2, a += 2, b += g.b_step, next_b += g.b_step) {
      Pair::template step<1, P>(acc[0], a, g.a_row, b, g.b_panel);
      Pair::template step<1, P>(acc[1], a, g.a_row, next_b, g.b_panel);
    }
#pragma GCC unroll 2
    for (int block = 0; block < 2; ++block) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) store<float>(g.c + column(block, p), acc[block][0][p]);
    }
  }

  static void run(const GemmBf16& g) {
    if constexpr (sizeof(typename Pair::Element) == sizeof(uint16_t)) {
      run(VectorGemm<Pair>{g, g.a, g.a_row});
      return;
    } else {
      constexpr ptrdiff_t rows = 32;
      float widened[rows * kDepth];
      for (GemmBf16 part = g; part.M > 0; part = from_row(part, rows)) {
        GemmBf16 block = part;
        block.M = least(part.M, rows);
        widen(block.M, low_padded(g.K), part.a, part.a_row, widened);
        run(VectorGemm<Pair>{block, widened, low_padded(g.K)});
      }
    }
  }

 private:
  static void widen(ptrdiff_t rows, ptrdiff_t n, const uint16_t* x, ptrdiff_t x_row, float* y) {
    for (ptrdiff_t r = 0; r < rows; ++r, x += x_row, y += n)
      for (ptrdiff_t k = 0; k < n; ++k) {
        const uint32_t bits = static_cast<uint32_t>(x[k]) << 16;
        __builtin_memcpy(y + k, &bits, 4);
      }
  }
  static void run(VectorGemm<Pair> g) {
    const auto next = [&](ptrdiff_t panels) { static_cast<GemmBf16&>(g) = from_panel(g, panels); };
    constexpr int P = Pair::kPanels;
    if (g.M <= 2)  // more panels at a time, to hide the latency of the sums
      for (; g.N >= 2 * P * kLowPanel; next(2 * P)) bf16_row_tiles<Pair, 2 * P, 2>(g);
    for (; g.N >= P * kLowPanel; next(P)) bf16_row_tiles<Pair, P, Pair::kRows>(g);
    if constexpr (P == 4) {  // the last panels: more rows, for as many chains
      if (g.N == 3 * kLowPanel) bf16_row_tiles<Pair, 3, Pair::kRows>(g);
      if (g.N == 2 * kLowPanel) bf16_row_tiles<Pair, 2, Pair::kRows + 2>(g);
      if (g.N == kLowPanel) bf16_row_tiles<Pair, 1, 2 * Pair::kRows>(g);
    } else {
      static_assert(P == 1);
    }
  }
};

// C = init + A B by blocks of k, for which B's panels stay in the cache. `Panels` takes whole panels only.
template <class Panels>
void gemm_bf16_blocks(GemmBf16 g) {
  const ptrdiff_t K = g.K;
  ptrdiff_t k = 0;
  do {
    g.K = least(kDepth, K - k);
    Panels::run(g);
    k += g.K;
    g.a += g.K;
    g.b += g.K / 2 * g.b_step;
    if (g.ahead) g.ahead += g.K / 2 * g.b_step;
    g.init = g.c;
    g.init_row = g.c_row;
  } while (k < K);
}

template <class Panels>
void gemm_bf16_columns(const GemmBf16& g) {
  const ptrdiff_t whole = g.N / kLowPanel, columns = g.N % kLowPanel;
  if (columns == 0) return gemm_bf16_blocks<Panels>(g);
  if (whole > 0) {
    GemmBf16 part = g;
    part.N = whole * kLowPanel;
    gemm_bf16_blocks<Panels>(part);
  }
  constexpr ptrdiff_t rows = 32;  // a last panel that is only partly there
  float edge[rows * kLowPanel];
  for (GemmBf16 part = from_panel(g, whole); part.M > 0; part = from_row(part, rows)) {
    const ptrdiff_t M = least(part.M, rows);
    for (ptrdiff_t m = 0; m < M; ++m)
      for (ptrdiff_t j = 0; j < kLowPanel; ++j)
        edge[m * kLowPanel + j] = part.init && j < columns ? part.init[m * part.init_row + j] : 0.0f;
    GemmBf16 tile = part;
    tile.M = M;
    tile.N = kLowPanel;
    tile.init = tile.c = edge;
    tile.init_row = tile.c_row = kLowPanel;
    gemm_bf16_blocks<Panels>(tile);
    for (ptrdiff_t m = 0; m < M; ++m)
      for (ptrdiff_t j = 0; j < columns; ++j) part.c[m * part.c_row + j] = edge[m * kLowPanel + j];
  }
}

template <class Panels>
void gemm_bf16(const GemmBf16& whole) {
  if (whole.M <= 0) return;
  GemmBf16 g = whole;
  if constexpr (Panels::kTwoBlocks)
    for (; g.M == 1 && g.blocks >= 2; next_blocks(g, 2)) Panels::two_blocks(g);
  for (; g.blocks > 0; next_blocks(g, 1)) {
    g.ahead = g.blocks > 1 ? g.b + g.b_block : whole.ahead;
    gemm_bf16_columns<Panels>(g);
  }
}

// Rows [0, R) of `x` in the order given, n columns from the first, to panels whose k is the row.
FUSEDLSTM_INLINE void pack_rows_bf16(ptrdiff_t R, ptrdiff_t n, const uint16_t* x, ptrdiff_t x_row,
                                     const int32_t* order, uint16_t* panels) {
  static const uint16_t zeros[kLowPanel] = {};
  const auto row = [&](ptrdiff_t r) { return x + (order ? order[r] : r) * x_row; };
  for (ptrdiff_t r = 0; r < low_padded(R); r += 2) {
    for (ptrdiff_t j0 = 0; j0 < n; j0 += kLowPanel) {
      const uint16_t *even = r < R ? row(r) + j0 : zeros, *odd = r + 1 < R ? row(r + 1) + j0 : zeros;
      uint16_t* pairs = panels + j0 * low_padded(R) + r * kLowPanel;
      if (n - j0 >= kLowPanel) {
        for (ptrdiff_t j = 0; j < kLowPanel; j += kLanes<float>)
          store_pairs(pairs + 2 * j, zip(even + j, odd + j));
      } else {
        for (ptrdiff_t j = 0; j < kLowPanel; ++j) {
          pairs[2 * j] = j < n - j0 ? even[j] : static_cast<uint16_t>(0);
          pairs[2 * j + 1] = j < n - j0 ? odd[j] : static_cast<uint16_t>(0);
        }
      }
    }
  }
}

// Columns [0, n) of R rows of `x` in the order given, to rows of low_padded(R): y[j][r] = x[order[r]][j].
FUSEDLSTM_INLINE void transpose_bf16(ptrdiff_t R, ptrdiff_t n, const uint16_t* x, ptrdiff_t x_row,
                                     const int32_t* order, uint16_t* y) {
  constexpr ptrdiff_t W = kLanes<float>;
  const ptrdiff_t y_row = low_padded(R), whole = n / W * W;
  const auto row = [&](ptrdiff_t r) { return x + (order ? order[r] : r) * x_row; };
  ptrdiff_t r = 0;
  for (; r + 2 * W <= R; r += 2 * W) {
    for (ptrdiff_t j = 0; j < whole; j += W) {
      Vec<float> square[W];
#pragma GCC unroll 16
      for (ptrdiff_t i = 0; i < W; ++i) square[i] = zip(row(r + 2 * i) + j, row(r + 2 * i + 1) + j);
      transpose<float>(square);
#pragma GCC unroll 16
      for (ptrdiff_t i = 0; i < W; ++i) store_pairs(y + (j + i) * y_row + r, square[i]);
    }
    for (ptrdiff_t i = r; i < r + 2 * W; ++i)
      for (ptrdiff_t j = whole; j < n; ++j) y[j * y_row + i] = row(i)[j];
  }
  for (; r < y_row; ++r)
    for (ptrdiff_t j = 0; j < n; ++j) y[j * y_row + r] = r < R ? row(r)[j] : static_cast<uint16_t>(0);
}

// C[m][n] += sum over rows r, in the order given, of A[r][m] B[r][n]: weight gradients. Rows are gathered in
// blocks, a multiple of kLowBlock but for the last, into panels of B and rows of A^T.
template <class Panels>
void gemm_transposed_bf16(const GemmTransposedBf16& g) {
  const RightSideBf16 sides[] = {g.side, g.also};
  for (ptrdiff_t r = 0; r < g.R; r += kReductionBlock) {
    const ptrdiff_t K = least(kReductionBlock, g.R - r);
    const auto rows = [&](const int32_t* order) { return order ? order + r : nullptr; };
    uint16_t* packed_a = g.scratch;
    for (const RightSideBf16& side : sides) {
      if (!g.packed && side.N > 0)
        pack_rows_bf16(K, side.N, side.b + (side.b_rows ? 0 : r * side.b_row), side.b_row, rows(side.b_rows),
                       packed_a);
      packed_a += low_packed_size(K, side.N);
    }
    for (ptrdiff_t m = 0; m < g.M; m += kReductionColumnsBf16) {
      const ptrdiff_t M = least(kReductionColumnsBf16, g.M - m);
      transpose_bf16(K, M, g.a + (g.a_rows ? 0 : r * g.a_row) + m, g.a_row, rows(g.a_rows), packed_a);
      const uint16_t* packed_b = g.scratch;
      for (const RightSideBf16& side : sides) {
        gemm_bf16<Panels>({.M = M,
                           .N = side.N,
                           .K = K,
                           .a = packed_a,
                           .a_row = low_padded(K),
                           .b = packed_b,
                           .b_panel = low_padded(K) * kLowPanel,
                           .init = side.c + m * side.c_row,
                           .init_row = side.c_row,
                           .c = side.c + m * side.c_row,
                           .c_row = side.c_row});
        packed_b += low_packed_size(K, side.N);
      }
    }
  }
}

template <class Panels>
constexpr Bf16Kernels bf16_kernels() {
  return {.round_rows = round_rows,
          .pack = pack_bf16,
          .gemm = gemm_bf16<Panels>,
          .gemm_transposed = gemm_transposed_bf16<Panels>};
}

}  // namespace
}  // namespace fusedlstm
