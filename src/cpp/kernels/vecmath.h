// exp, log, sigmoid and tanh of a vector, from additions, multiplications, fma and division only: the same
// bits on every instruction set. Subnormal arguments and results are zero (kernels run with flush-to-zero).
//
//   exp      max 2 ulp;  > ln(max) -> inf, < ln(min normal) -> 0, NaN -> NaN
//   log      max 2 ulp for positive finite arguments; 0 -> -inf, < 0 -> NaN, inf -> inf
//   sigmoid  max 4 ulp while the result is normal; -inf -> 0, inf -> 1, NaN -> NaN
//   tanh     max 4 ulp; keeps the sign of zero, NaN -> NaN
#pragma once

#include "kernels/simd.h"

namespace fusedlstm {
namespace {

template <class T>
struct MathConstants;
template <>
struct MathConstants<float> {
  static constexpr float round = 0x1.8p23f;  // adding it leaves the nearest integer in the low mantissa bits
  static constexpr int mantissa_bits = 23;
  static constexpr float log2_e = 0x1.715476p0f;
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  static constexpr float exp_above = 0x1.62e42ep6f,
                         exp_below = -0x1.5d589ep6f;  // ln of the largest, smallest normal
  static constexpr float tanh_one = 9.02f;            // tanh is 1 from here
  static constexpr int32_t sqrt_half = 0x3f3504f3;
  // (e^r - 1 - r) / r^2 on |r| <= ln(2)/2, Chebyshev fit, error 6.5e-8
  static constexpr float expm1[] = {0x1p-1f, 0x1.5554dcp-3f, 0x1.55551ap-5f, 0x1.120ba2p-7f, 0x1.6d113cp-10f};
  static constexpr int log_terms = 5;
};
template <>
struct MathConstants<double> {
  static constexpr double round = 0x1.8p52;
  static constexpr int mantissa_bits = 52;
  static constexpr double log2_e = 0x1.71547652b82fep0;
  static constexpr double ln2_high = 0x1.62e42p-1, ln2_low = 0x1.fdf473de6af28p-22;
  static constexpr double exp_above = 0x1.62e42fefa39efp9, exp_below = -0x1.6232bdd7abcd2p9;
  static constexpr double tanh_one = 19.1;
  static constexpr int64_t sqrt_half = 0x3fe6a09e667f3bcd;
  // the same, error 1.1e-16
  static constexpr double expm1[] = {0x1.0000000000001p-1,  0x1.5555555555556p-3,  0x1.5555555553d4fp-5,
                                     0x1.11111111109adp-7,  0x1.6c16c17893833p-10, 0x1.a01a01a7c8d47p-13,
                                     0x1.a019b8ef67c6cp-16, 0x1.71de0d9c145d0p-19, 0x1.2891a8c1d838dp-22,
                                     0x1.af38d53857513p-26};
  static constexpr int log_terms = 12;
};

// Functions of N vectors take them in step, each operation for all before the next one: every vector alone is
// a chain of some twenty dependent operations, and a core looks ahead no more than a few chains.
#define FUSEDLSTM_EACH _Pragma("GCC unroll 16") for (int j = 0; j < N; ++j)

// x = n ln 2 + r:  e^x = 2^n (1 + m),  m = e^r - 1.  x must lie between the limits of exp, or be NaN.
template <class T, int N>
struct ExpParts {
  Vec<T> m[N];         // e^r - 1, relative error below 1 ulp
  VecInt<T> scale[N];  // n << mantissa_bits, to be added to an exponent
};
template <class T, int N>
FUSEDLSTM_INLINE ExpParts<T, N> exp_parts(const Vec<T> (&x)[N]) {
  using C = MathConstants<T>;
  constexpr int degree = sizeof(C::expm1) / sizeof(T) - 1;
  Vec<T> shifted[N], n[N], r[N], p[N];
  ExpParts<T, N> e;
  FUSEDLSTM_EACH shifted[j] = fma(x[j], broadcast<T>(C::log2_e), broadcast<T>(C::round));
  FUSEDLSTM_EACH n[j] = shifted[j] - C::round;
  FUSEDLSTM_EACH r[j] = fma(n[j], broadcast<T>(-C::ln2_high), x[j]);
  FUSEDLSTM_EACH r[j] = fma(n[j], broadcast<T>(-C::ln2_low), r[j]);
  FUSEDLSTM_EACH p[j] = broadcast<T>(C::expm1[degree]);
#pragma GCC unroll 16
  for (int i = degree - 1; i >= 0; --i) {
    FUSEDLSTM_EACH p[j] = fma(p[j], r[j], broadcast<T>(C::expm1[i]));
  }
  FUSEDLSTM_EACH e.m[j] = fma(p[j] * r[j], r[j], r[j]);
  FUSEDLSTM_EACH e.scale[j] = bits<T>(shifted[j]) << C::mantissa_bits;
  return e;
}

// e^x for exp_below <= x <= exp_above, or NaN.
template <class T>
FUSEDLSTM_INLINE Vec<T> exp_inside(Vec<T> x) {
  const ExpParts<T, 1> e = exp_parts<T>({x});
  return add_bits<T>(e.m[0] + T(1), e.scale[0]);
}
template <class T>
FUSEDLSTM_INLINE Vec<T> to_exp_limits(Vec<T> x) {
  using C = MathConstants<T>;
  return at_least(at_most(x, broadcast<T>(C::exp_above)), broadcast<T>(C::exp_below));
}

template <class T>
FUSEDLSTM_INLINE Vec<T> exp(Vec<T> x) {
  using C = MathConstants<T>;
  const Vec<T> y = exp_inside<T>(to_exp_limits<T>(x));
  return x > C::exp_above ? broadcast<T>(static_cast<T>(__builtin_inf())) : x < C::exp_below ? Vec<T>{} : y;
}

// In place: sigmoid of the first Sigmoids vectors, tanh of the others.
//
// sigmoid x = 1 / (1 + e^-x): at the upper limit that is subnormal, so 0. With t = e^2|x| - 1,
// tanh |x| = t / (t + 2), and t = 2^n m + (2^n - 1) keeps its relative accuracy near 0.
template <class T, int Sigmoids, int N>
FUSEDLSTM_INLINE void activations(Vec<T> (&x)[N]) {
  using C = MathConstants<T>;
  const Vec<T> one = broadcast<T>(1);
  Vec<T> y[N];
  VecInt<T> sign[N];
  FUSEDLSTM_EACH {
    sign[j] = bits<T>(x[j]) & bits<T>(broadcast<T>(T(-0.0)));
    const Vec<T> magnitude = at_most(from_bits<T>(bits<T>(x[j]) ^ sign[j]), broadcast<T>(C::tanh_one));
    y[j] = j < Sigmoids ? to_exp_limits<T>(-x[j]) : magnitude + magnitude;
  }
  const ExpParts<T, N> e = exp_parts<T>(y);
  FUSEDLSTM_EACH {
    if (j < Sigmoids) {
      x[j] = one / (one + add_bits<T>(e.m[j] + one, e.scale[j]));
    } else {
      const Vec<T> two_n = add_bits<T>(one, e.scale[j]), t = fma(two_n, e.m[j], two_n - one);
      x[j] = from_bits<T>(bits<T>(t / (t + T(2))) | sign[j]);
    }
  }
}
template <class T>
FUSEDLSTM_INLINE Vec<T> sigmoid(Vec<T> x) {
  Vec<T> y[] = {x};
  activations<T, 1>(y);
  return y[0];
}
template <class T>
FUSEDLSTM_INLINE Vec<T> tanh(Vec<T> x) {
  Vec<T> y[] = {x};
  activations<T, 0>(y);
  return y[0];
}

// x = 2^k m, m in [sqrt(1/2), sqrt(2)):  log x = k ln 2 + 2 atanh(s),  s = (m - 1) / (m + 1)
template <class T>
FUSEDLSTM_INLINE Vec<T> log(Vec<T> x) {
  using C = MathConstants<T>;
  using I = typename VecTypes<T>::integer;
  const VecInt<T> offset = bits<T>(x > T(0) ? x : broadcast<T>(1)) - C::sqrt_half;
  const VecInt<T> k_bits = (offset >> C::mantissa_bits) << C::mantissa_bits;
  const Vec<T> f = add_bits<T>(x, -k_bits) - T(1);
  Vec<T> k;
  for (int i = 0; i < kLanes<T>; ++i)
    k[i] = static_cast<T>(static_cast<int32_t>(k_bits[i] / (I(1) << C::mantissa_bits)));
  const Vec<T> s = f / (f + T(2)), z = s * s;
  Vec<T> series = broadcast<T>(T(1) / (2 * C::log_terms + 1));
  for (int i = C::log_terms - 1; i >= 1; --i) series = fma(series, z, broadcast<T>(T(1) / (2 * i + 1)));
  // 2 atanh(s) = 2s + 2s z series, and 2s = f - s f exactly in real numbers: f carries the leading digits.
  const Vec<T> tail = s * (fma(z + z, series, -f));
  const Vec<T> y = fma(k, broadcast<T>(C::ln2_high), f + fma(k, broadcast<T>(C::ln2_low), tail));
  const T inf = static_cast<T>(__builtin_inf());
  const Vec<T> nan = broadcast<T>(static_cast<T>(__builtin_nan("")));
  return x < T(0) ? nan : x == T(0) ? broadcast<T>(-inf) : x == inf ? x : x != x ? x : y;
}

}  // namespace
}  // namespace fusedlstm
