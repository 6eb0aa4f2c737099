// One vector register per type, for the instruction set this file is compiled for.
//
// Vec<T> has kLanes<T> lanes; + - * / and comparisons are the compiler's own vector operators, everything
// else is below. The same sequence of these operations gives the same bits on every level: fma rounds once
// everywhere (by instruction, or exactly emulated), division and square root are the correctly rounded ones.
//
// This header and all that include it are compiled once per level inside an unnamed namespace and use nothing
// from the standard library: inline code from there, compiled for AVX-512, could be linked into everything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>  // integer_sequence: a type, no code

#if defined(FUSEDLSTM_LEVEL_AVX512) || defined(FUSEDLSTM_LEVEL_AVX2)
#include <immintrin.h>
#elif defined(FUSEDLSTM_LEVEL_NEON)
#include <arm_neon.h>
#endif

#define FUSEDLSTM_INLINE inline __attribute__((always_inline))

namespace fusedlstm {
namespace {

// Accumulators of a matrix product tile: kTileRows (6) rows x kTilePanels panels of two vectors.
#if defined(FUSEDLSTM_LEVEL_AVX512)
constexpr int kVectorBytes = 64;
constexpr int kTilePanels = 2;  // 24 accumulators, 4 for B, 1 for a broadcast: 29 of 32 registers
#elif defined(FUSEDLSTM_LEVEL_AVX2)
constexpr int kVectorBytes = 32;
constexpr int kTilePanels = 1;  // 12 + 2 + 1 of 16
#elif defined(FUSEDLSTM_LEVEL_NEON)
constexpr int kVectorBytes = 16;
constexpr int kTilePanels = 2;
#elif defined(FUSEDLSTM_LEVEL_GENERIC)
constexpr int kVectorBytes = 16;
constexpr int kTilePanels = 1;
#else
#error "compile with -DFUSEDLSTM_LEVEL_<name>"
#endif

template <class T>
struct VecTypes;
template <>
struct VecTypes<float> {
  typedef float vec __attribute__((vector_size(kVectorBytes)));
  typedef int32_t ints __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t unsigned_ints __attribute__((vector_size(kVectorBytes)));
  typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t integer;
};
template <>
struct VecTypes<double> {
  typedef double vec __attribute__((vector_size(kVectorBytes)));
  typedef int64_t ints __attribute__((vector_size(kVectorBytes)));
  typedef uint64_t unsigned_ints __attribute__((vector_size(kVectorBytes)));
  typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t integer;
};
template <class T>
using Vec = typename VecTypes<T>::vec;
template <class T>
using VecInt = typename VecTypes<T>::ints;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
FUSEDLSTM_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecTypes<T>::unaligned*>(p);
}
template <class T>
FUSEDLSTM_INLINE void store(T* p, Vec<T> a) {
  *reinterpret_cast<typename VecTypes<T>::unaligned*>(p) = a;
}
// The first n lanes (0 < n <= kLanes); the others read as 0, and are not written.
template <class T>
FUSEDLSTM_INLINE Vec<T> load_first(const T* p, int n) {
  Vec<T> a{};
  for (int i = 0; i < n; ++i) a[i] = p[i];
  return a;
}
template <class T>
FUSEDLSTM_INLINE void store_first(T* p, Vec<T> a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a[i];
}
template <class T>
FUSEDLSTM_INLINE Vec<T> broadcast(T a) {
  return a - Vec<T>{};  // a - 0 keeps the sign of zero
}
template <class T>
FUSEDLSTM_INLINE VecInt<T> bits(Vec<T> a) {
  return reinterpret_cast<VecInt<T>>(a);
}
template <class T>
FUSEDLSTM_INLINE Vec<T> from_bits(VecInt<T> a) {
  return reinterpret_cast<Vec<T>>(a);
}
// a + b in bits, wrapping around: with a NaN among the arguments there is no exponent that could be kept in
// range.
template <class T>
FUSEDLSTM_INLINE Vec<T> add_bits(Vec<T> a, VecInt<T> b) {
  using Unsigned = typename VecTypes<T>::unsigned_ints;
  return reinterpret_cast<Vec<T>>(reinterpret_cast<Unsigned>(a) + reinterpret_cast<Unsigned>(b));
}
// Lanes of a and b in turn, beginning with lane First: a0 b0 a1 b1 ...
template <class T, int First, int... I>
FUSEDLSTM_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (First + I / 2 + I % 2 * kLanes<T>)...);
}
// Row i, lane j to row j, lane i: each round halves the distance between lanes that belong together.
template <class T>
FUSEDLSTM_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int W = kLanes<T>;
  constexpr std::make_integer_sequence<int, W> lanes{};
#pragma GCC unroll 4
  for (int round = 1; round < W; round *= 2) {
    Vec<T> next[W];
#pragma GCC unroll 16
    for (int i = 0; i < W / 2; ++i) {
      next[2 * i] = interleave<T, 0>(rows[i], rows[i + W / 2], lanes);
      next[2 * i + 1] = interleave<T, W / 2>(rows[i], rows[i + W / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = next[i];
  }
}
// Comparisons give all ones or all zeros per lane; NaN compares false, so a NaN in `a` passes through both.
template <class V>
FUSEDLSTM_INLINE V at_most(V a, V limit) {
  return a > limit ? limit : a;
}
template <class V>
FUSEDLSTM_INLINE V at_least(V a, V limit) {
  return a < limit ? limit : a;
}
#if defined(FUSEDLSTM_LEVEL_AVX512)
// One instruction: of two arguments that do not compare it gives the second. Full masks for the reason below.
FUSEDLSTM_INLINE Vec<float> at_most(Vec<float> a, Vec<float> limit) {
  return _mm512_maskz_min_ps(0xffff, limit, a);
}
FUSEDLSTM_INLINE Vec<float> at_least(Vec<float> a, Vec<float> limit) {
  return _mm512_maskz_max_ps(0xffff, limit, a);
}
#elif defined(FUSEDLSTM_LEVEL_AVX2)
FUSEDLSTM_INLINE Vec<float> at_most(Vec<float> a, Vec<float> limit) { return _mm256_min_ps(limit, a); }
FUSEDLSTM_INLINE Vec<float> at_least(Vec<float> a, Vec<float> limit) { return _mm256_max_ps(limit, a); }
#endif

// fma(a, b, c) = a * b + c with one rounding.
#if defined(FUSEDLSTM_LEVEL_AVX512)
FUSEDLSTM_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm512_fmadd_ps(a, b, c); }
FUSEDLSTM_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm512_fmadd_pd(a, b, c);
}
// With a full mask: the plain forms of GCC 12 read a register left undefined on purpose, and warn about it.
FUSEDLSTM_INLINE Vec<float> square_root(Vec<float> a) { return _mm512_maskz_sqrt_ps(0xffff, a); }
FUSEDLSTM_INLINE Vec<double> square_root(Vec<double> a) { return _mm512_maskz_sqrt_pd(0xff, a); }
#elif defined(FUSEDLSTM_LEVEL_AVX2)
FUSEDLSTM_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm256_fmadd_ps(a, b, c); }
FUSEDLSTM_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm256_fmadd_pd(a, b, c);
}
FUSEDLSTM_INLINE Vec<float> square_root(Vec<float> a) { return _mm256_sqrt_ps(a); }
FUSEDLSTM_INLINE Vec<double> square_root(Vec<double> a) { return _mm256_sqrt_pd(a); }
#elif defined(FUSEDLSTM_LEVEL_NEON)
FUSEDLSTM_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
FUSEDLSTM_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
FUSEDLSTM_INLINE Vec<float> square_root(Vec<float> a) { return (Vec<float>)vsqrtq_f32((float32x4_t)a); }
FUSEDLSTM_INLINE Vec<double> square_root(Vec<double> a) { return (Vec<double>)vsqrtq_f64((float64x2_t)a); }
#else
// Without an fma instruction: exact emulation. Boldo and Melquiond, "Emulation of FMA and correctly rounded
// sums: proved algorithms using rounding to odd", IEEE Trans. Computers 57(4), 2008.
struct Sum {
  double high, low;  // high + low is the exact sum
};
FUSEDLSTM_INLINE Sum exact_sum(double a, double b) {
  const double s = a + b;
  const double b_part = s - a;
  return {s, (a - (s - b_part)) + (b - b_part)};
}
// a + b rounded to odd: of the two neighbours of an inexact sum, the one whose last bit is 1.
FUSEDLSTM_INLINE double sum_to_odd(double a, double b) {
  const Sum s = exact_sum(a, b);
  int64_t u;
  __builtin_memcpy(&u, &s.high, 8);
  if (s.low != 0 && s.low - s.low == 0 && (u & 1) == 0) u += (s.low > 0) == (s.high > 0) ? 1 : -1;
  double r;
  __builtin_memcpy(&r, &u, 8);
  return r;
}
FUSEDLSTM_INLINE float fma(float a, float b, float c) {
  return static_cast<float>(sum_to_odd(static_cast<double>(a) * b, c));  // the product of two floats is exact
}
// Exact while |a|, |b| < 2^995 and the product's low part does not underflow (|a b| > 2^-914).
FUSEDLSTM_INLINE double fma(double a, double b, double c) {
  const double plain = a * b + c;
  if (plain - plain != 0) return plain;  // infinities and NaN
  const double split = 134217729.0;      // 2^27 + 1, Dekker 1971
  const double as = a * split, bs = b * split;
  const double a1 = as - (as - a), b1 = bs - (bs - b);
  const double a2 = a - a1, b2 = b - b1;
  const double p = a * b;
  const double p_low = ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2;
  const Sum t = exact_sum(c, p_low);
  const Sum u = exact_sum(p, t.high);
  return u.high + sum_to_odd(t.low, u.low);
}
__attribute__((noinline)) Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  for (int i = 0; i < kLanes<float>; ++i) c[i] = fma(a[i], b[i], c[i]);
  return c;
}
__attribute__((noinline)) Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  for (int i = 0; i < kLanes<double>; ++i) c[i] = fma(a[i], b[i], c[i]);
  return c;
}
FUSEDLSTM_INLINE Vec<float> square_root(Vec<float> a) {
  for (int i = 0; i < kLanes<float>; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
FUSEDLSTM_INLINE Vec<double> square_root(Vec<double> a) {
  for (int i = 0; i < kLanes<double>; ++i) a[i] = __builtin_sqrt(a[i]);
  return a;
}
#endif

// Height of the next tile where `rows` are left: all as equal as can be, 20 rows as 5 5 5 5 and not as
// 6 6 6 2, since a low tile has too few chains to hide the latency of fma.
FUSEDLSTM_INLINE ptrdiff_t tile_rows(ptrdiff_t rows, ptrdiff_t most) {
  const ptrdiff_t tiles = (rows + most - 1) / most;
  return (rows + tiles - 1) / tiles;
}

}  // namespace
}  // namespace fusedlstm
