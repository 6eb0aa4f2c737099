// Products of int8 matrices for inference. Sums are exact in int32, so that their order is no matter and
// every instruction set gives the same bits; only what is done with a sum afterwards is float32:
//
//   c = init + column_scale * (row_scale * sum)        each operation rounded once
#pragma once

#include "kernels/simd.h"
#include "kernels/table.h"

namespace fusedlstm {
namespace {

constexpr float kInt8Steps = 127;

// The scale max |x| / 127; NaN if a value is not finite, which makes every product with it NaN.
FUSEDLSTM_INLINE float int8_scale(ptrdiff_t n, const float* x) {
  constexpr int W = kLanes<float>;
  constexpr int32_t infinity = 0x7f800000;
  const auto largest = [](VecInt<float> most, Vec<float> values) {
    const VecInt<float> magnitude = bits<float>(values) & 0x7fffffff;  // in the order of the values
    return magnitude > most ? magnitude : most;
  };
  VecInt<float> lanes{};
  ptrdiff_t j = 0;
  for (; j + W <= n; j += W) lanes = largest(lanes, load(x + j));
  if (j < n) lanes = largest(lanes, load_first(x + j, static_cast<int>(n - j)));
  int32_t most = 0;
  for (int i = 0; i < W; ++i) most = lanes[i] > most ? lanes[i] : most;
  float magnitude;
  __builtin_memcpy(&magnitude, &most, 4);
  return most < infinity ? magnitude / kInt8Steps : __builtin_nanf("");
}
FUSEDLSTM_INLINE float inverse_scale(float scale) { return scale > 0 ? 1 / scale : 0.0f; }

// y = x * inverse to the nearest integer, ties to even; |x * inverse| < 2^22. NaN, and with no inverse all:
// 0.
FUSEDLSTM_INLINE void quantise(ptrdiff_t n, const float* x, float inverse, int8_t* y) {
  constexpr int W = kLanes<float>;
  typedef int8_t Bytes __attribute__((vector_size(W)));
  constexpr float to_integer = 12582912;  // 1.5 * 2^23: at it, numbers are 1 apart
  const auto rounded = [inverse](Vec<float> values) {
    const Vec<float> steps = (values * inverse + to_integer) - to_integer;
    const Vec<float> within = at_least(at_most(steps, broadcast(kInt8Steps)), broadcast(-kInt8Steps));
    const Vec<float> numbers = steps == steps ? within : Vec<float>{};
    return __builtin_convertvector(__builtin_convertvector(numbers, VecInt<float>), Bytes);
  };
  if (!(inverse > 0)) inverse = 0;
  ptrdiff_t j = 0;
  for (; j + W <= n; j += W) {
    const Bytes bytes = rounded(load(x + j));
    __builtin_memcpy(y + j, &bytes, W);
  }
  if (j == n) return;
  const Bytes bytes = rounded(load_first(x + j, static_cast<int>(n - j)));
  for (ptrdiff_t i = 0; i < n - j; ++i) y[j + i] = bytes[i];
}

void quantise_rows(ptrdiff_t rows, ptrdiff_t n, ptrdiff_t padded, const float* x, ptrdiff_t x_row, int8_t* y,
                   ptrdiff_t y_row, float* scales) {
  for (ptrdiff_t r = 0; r < rows; ++r, x += x_row, y += y_row) {
    if (scales) scales[r] = int8_scale(n, x);
    quantise(n, x, scales ? inverse_scale(scales[r]) : kInt8Steps, y);
    for (ptrdiff_t j = n; j < padded; ++j) y[j] = 0;
  }
}

// 128 times the sums of the columns are for kernels that multiply a + 128.
void pack_int8(ptrdiff_t K, ptrdiff_t N, const float* source, ptrdiff_t n_stride, int8_t* panels,
               LowLayout layout, float* scales) {
  for (ptrdiff_t n0 = 0; n0 < N; n0 += kLowPanel, panels += layout.panel) {
    for (ptrdiff_t j = 0; j < kLowPanel; ++j) {
      const float* column = source + (n0 + j) * n_stride;
      const bool there = n0 + j < N;
      const float scale = there ? int8_scale(K, column) : 0.0f, inverse = inverse_scale(scale);
      int32_t sum = 0;
      for (ptrdiff_t k = 0; k < low_padded(K); k += kLowBlock) {
        int8_t weights[kLowBlock] = {};
        if (there) quantise(K - k < kLowBlock ? K - k : kLowBlock, column + k, inverse, weights);
        for (ptrdiff_t quad = 0; quad < kLowBlock; quad += 4) {
          __builtin_memcpy(panels + (k + quad) / 4 * layout.step + 4 * j, weights + quad, 4);
          for (ptrdiff_t i = 0; i < 4; ++i) sum += weights[quad + i];
        }
      }
      sum *= 128;
      __builtin_memcpy(panels + low_padded(K) / 4 * layout.step + 4 * j, &sum, 4);
      if (there) scales[n0 + j] = scale;
    }
  }
}

// Sums of M rows and P panels of some blocks, by the instructions at hand.
#if defined(FUSEDLSTM_INT8_VNNI)
constexpr int kInt8Rows = 4, kInt8Panels = 4, kInt8FewRowsPanels = 8;
constexpr bool kInt8TwoBlocks = true;
template <int Blocks, int M, int P>
FUSEDLSTM_INLINE void int8_sums(const GemmInt8& g, int32_t (&sums)[Blocks][M][P][kLowPanel]) {
  VecInt<float> acc[Blocks][M][P] = {};  // as __m512i, GCC 12 copies them from register to register each time
  const int8_t *a = g.a, *b[] = {g.b, g.b + g.b_block};
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80));  // a + 128 is unsigned
  for (ptrdiff_t k = 0; k < g.K; k += 4, a += 4) {
#pragma GCC unroll 2
    for (int block = 0; block < Blocks; ++block) {
      __m512i b_k[P];
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) b_k[p] = _mm512_loadu_si512(b[block] + p * g.b_panel);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        int quad;
        __builtin_memcpy(&quad, a + m * g.a_row, 4);
        const __m512i a_k = _mm512_xor_si512(_mm512_set1_epi32(quad), offset);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
          acc[block][m][p] = (VecInt<float>)_mm512_dpbusd_epi32((__m512i)acc[block][m][p], a_k, b_k[p]);
      }
      b[block] += g.b_step;
    }
  }
#pragma GCC unroll 2
  for (int block = 0; block < Blocks; ++block) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const __m512i column_sums =
          _mm512_loadu_si512(g.b + block * g.b_block + p * g.b_panel + low_padded(g.K) / 4 * g.b_step);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m)
        _mm512_storeu_si512(sums[block][m][p], _mm512_sub_epi32((__m512i)acc[block][m][p], column_sums));
    }
  }
}
#elif defined(FUSEDLSTM_LEVEL_AVX512) || defined(FUSEDLSTM_LEVEL_AVX2)
#if defined(FUSEDLSTM_LEVEL_AVX512)
using Int8Vector = __m512i;
constexpr int kInt8Rows = 4, kInt8Panels = 2, kInt8FewRowsPanels = 4;
constexpr bool kInt8TwoBlocks = false;
// With a full mask, as in simd.h.
FUSEDLSTM_INLINE __m512i widen_int8(const int8_t* p) {
  return _mm512_maskz_cvtepi8_epi16(0xffffffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
FUSEDLSTM_INLINE __m512i widen_quad(int quad) {
  return _mm512_maskz_broadcastq_epi64(0xff, _mm_cvtepi8_epi16(_mm_cvtsi32_si128(quad)));
}
FUSEDLSTM_INLINE __m512i multiply_add_int16(__m512i a, __m512i b, __m512i c) {
  return _mm512_add_epi32(c, _mm512_madd_epi16(a, b));
}
#else
using Int8Vector = __m256i;
constexpr int kInt8Rows = 2, kInt8Panels = 1, kInt8FewRowsPanels = 2;
constexpr bool kInt8TwoBlocks = false;
FUSEDLSTM_INLINE __m256i widen_int8(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
FUSEDLSTM_INLINE __m256i widen_quad(int quad) {
  return _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(quad)));
}
FUSEDLSTM_INLINE __m256i multiply_add_int16(__m256i a, __m256i b, __m256i c) {
  return _mm256_add_epi32(c, _mm256_madd_epi16(a, b));
}
#endif
template <int Blocks, int M, int P>
FUSEDLSTM_INLINE void int8_sums(const GemmInt8& g, int32_t (&sums)[Blocks][M][P][kLowPanel]) {
  constexpr int bytes = kVectorBytes / 2, V = 4 * static_cast<int>(kLowPanel) / bytes;  // vectors of a panel
  Int8Vector acc[M][P * V] = {};  // a column's sum in two parts: k and k + 1, k + 2 and k + 3
  const int8_t *a = g.a, *b = g.b;
  for (ptrdiff_t k = 0; k < g.K; k += 4, a += 4, b += g.b_step) {
    Int8Vector b_k[P * V];
#pragma GCC unroll 16
    for (int v = 0; v < P * V; ++v) b_k[v] = widen_int8(b + (v / V) * g.b_panel + (v % V) * bytes);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      int quad;
      __builtin_memcpy(&quad, a + m * g.a_row, 4);
      const Int8Vector a_k = widen_quad(quad);
#pragma GCC unroll 16
      for (int v = 0; v < P * V; ++v) acc[m][v] = multiply_add_int16(a_k, b_k[v], acc[m][v]);
    }
  }
  for (int m = 0; m < M; ++m) {
    int32_t parts[P * 2 * kLowPanel];
    __builtin_memcpy(parts, acc[m], sizeof parts);
    for (int p = 0; p < P; ++p)
      for (int j = 0; j < kLowPanel; ++j)
        sums[0][m][p][j] = parts[p * 2 * kLowPanel + 2 * j] + parts[p * 2 * kLowPanel + 2 * j + 1];
  }
}
#else
constexpr int kInt8Rows = 2, kInt8Panels = 1, kInt8FewRowsPanels = 1;
constexpr bool kInt8TwoBlocks = false;
template <int Blocks, int M, int P>
FUSEDLSTM_INLINE void int8_sums(const GemmInt8& g, int32_t (&sums)[Blocks][M][P][kLowPanel]) {
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < P; ++p) {
      int32_t* const sum = sums[0][m][p];
      for (int j = 0; j < kLowPanel; ++j) sum[j] = 0;
      for (ptrdiff_t k = 0; k < g.K; k += 4) {
        const int8_t *a = g.a + m * g.a_row + k, *b = g.b + p * g.b_panel + k / 4 * g.b_step;
        for (int j = 0; j < kLowPanel; ++j)
          sum[j] += a[0] * b[4 * j] + a[1] * b[4 * j + 1] + a[2] * b[4 * j + 2] + a[3] * b[4 * j + 3];
      }
    }
}
#endif

template <int M, int P, int Blocks = 1>
void int8_tile(const GemmInt8& g) {
  constexpr ptrdiff_t W = kLanes<float>;
  int32_t sums[Blocks][M][P][kLowPanel];
  int8_sums(g, sums);
  for (int block = 0; block < Blocks; ++block) {
    for (int m = 0; m < M; ++m) {
      for (int p = 0; p < P; ++p) {
        const ptrdiff_t column = block * g.c_block + p * g.c_panel;
        const float *init = g.init + m * g.init_row + column, *scale = g.column_scale + column;
        float* const c = g.c + m * g.c_row + column;
#pragma GCC unroll 4
        for (ptrdiff_t j = 0; j < kLowPanel; j += W) {
          VecInt<float> sum;
          __builtin_memcpy(&sum, sums[block][m][p] + j, sizeof sum);
          Vec<float> value = __builtin_convertvector(sum, Vec<float>);
          if (g.row_scale) value *= broadcast(g.row_scale[m]);
          store<float>(c + j, load(init + j) + load(scale + j) * value);
        }
      }
    }
  }
}

FUSEDLSTM_INLINE void next_rows(GemmInt8& g, ptrdiff_t m) {
  g.M -= m;
  g.a += m * g.a_row;
  g.init += m * g.init_row;
  g.c += m * g.c_row;
  if (g.row_scale) g.row_scale += m;
}

template <int P>
void int8_panels(GemmInt8 g) {
  if constexpr (P <= kInt8Panels) {
    for (; g.M >= kInt8Rows; next_rows(g, kInt8Rows)) int8_tile<kInt8Rows, P>(g);
    for (; g.M >= kInt8Rows / 2; next_rows(g, kInt8Rows / 2)) int8_tile<kInt8Rows / 2, P>(g);
  }
  for (; g.M > 0; next_rows(g, 1)) int8_tile<1, P>(g);
}

void gemm_int8_columns(GemmInt8 g) {
  const auto next = [&](ptrdiff_t panels) {
    g.N -= panels * kLowPanel;
    g.b += panels * g.b_panel;
    g.column_scale += panels * g.c_panel;
    g.init += panels * g.c_panel;
    g.c += panels * g.c_panel;
  };
  if (g.M < kInt8Rows / 2)
    for (; g.N >= kInt8FewRowsPanels * kLowPanel; next(kInt8FewRowsPanels))
      int8_panels<kInt8FewRowsPanels>(g);
  for (; g.N >= kInt8Panels * kLowPanel; next(kInt8Panels)) int8_panels<kInt8Panels>(g);
  for (; g.N >= kLowPanel; next(1)) int8_panels<1>(g);
  if (g.N > 0)  // a last panel that is only partly there
    for (; g.M > 0; next_rows(g, 1)) {
      float row[kLowPanel];
      GemmInt8 tile = g;
      tile.M = 1;
      tile.c = row;
      int8_panels<1>(tile);
      for (ptrdiff_t j = 0; j < g.N; ++j) g.c[j] = row[j];
    }
}

void gemm_int8(const GemmInt8& whole) {
  GemmInt8 g = whole;
  const auto next = [&g](ptrdiff_t blocks) {
    next_blocks(g, blocks);
    g.column_scale += blocks * g.c_block;
  };
  if constexpr (kInt8TwoBlocks)  // of one row, two at a time, to hide the latency of the sums
    for (; g.M == 1 && g.blocks >= 2; next(2)) int8_tile<1, kLowGates, 2>(g);
  for (; g.blocks > 0; next(1)) gemm_int8_columns(g);
}

constexpr Int8Kernels int8_kernels() {
  return {.quantise_rows = quantise_rows, .pack = pack_int8, .gemm = gemm_int8};
}

}  // namespace
}  // namespace fusedlstm
