// Passes over vectors: sums, softmax, dropout, optimisers, and the elementary functions on arrays.
#pragma once

#include "kernels/table.h"
#include "kernels/vecmath.h"

namespace fusedlstm {
namespace {

// body(offset, lanes) for whole vectors, then once for what is left over.
template <class T, class Body>
FUSEDLSTM_INLINE void for_vectors(ptrdiff_t n, const Body& body) {
  constexpr int W = kLanes<T>;
  ptrdiff_t j = 0;
  for (; j + W <= n; j += W) body(j, W);
  if (j < n) body(j, static_cast<int>(n - j));
}
template <class T>
FUSEDLSTM_INLINE Vec<T> load_part(const T* p, int lanes) {
  return lanes == kLanes<T> ? load(p) : load_first(p, lanes);
}
template <class T>
FUSEDLSTM_INLINE void store_part(T* p, Vec<T> a, int lanes) {
  if (lanes == kLanes<T>)
    store<T>(p, a);
  else
    store_first<T>(p, a, lanes);
}

// A sum over 16 virtual lanes on every level: element j goes to lane j mod 16; in the end the lanes are added
// in halves.
template <class T>
struct LaneSum {
  static constexpr int W = kLanes<T>;
  T lane[16] = {};

  // sum over j < n of value(j, lanes), where value must be 0 in lanes that do not exist
  template <class Value>
  FUSEDLSTM_INLINE void add(ptrdiff_t n, const Value& value) {
    Vec<T> sum[16 / W];
    for (int v = 0; v < 16 / W; ++v) sum[v] = load(lane + v * W);
    ptrdiff_t j = 0;
    for (; j + 16 <= n; j += 16)
      for (int v = 0; v < 16 / W; ++v) sum[v] = value(sum[v], j + v * W, W);
    for (int v = 0; v < 16 / W && j < n; ++v, j += W)
      sum[v] = value(sum[v], j, n - j < W ? static_cast<int>(n - j) : W);
    for (int v = 0; v < 16 / W; ++v) store<T>(lane + v * W, sum[v]);
  }
  FUSEDLSTM_INLINE T total() {
    for (int half = 8; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
    return lane[0];
  }
};

template <class T>
void add(ptrdiff_t n, const T* x, T* y) {
  for_vectors<T>(n, [&](ptrdiff_t j, int lanes) {
    store_part<T>(y + j, load_part(y + j, lanes) + load_part(x + j, lanes), lanes);
  });
}

template <class T>
void add_rows(ptrdiff_t rows, ptrdiff_t n, const T* x, ptrdiff_t x_row, const int32_t* order, T* sums) {
  constexpr int W = kLanes<T>;
  ptrdiff_t j = 0;
  for (; j + 4 * W <= n; j += 4 * W) {  // four vectors at a time: whole cache lines of a row
    Vec<T> s0 = load(sums + j), s1 = load(sums + j + W), s2 = load(sums + j + 2 * W),
           s3 = load(sums + j + 3 * W);
    for (ptrdiff_t r = 0; r < rows; ++r) {
      const T* row = x + (order ? order[r] : r) * x_row + j;
      s0 = s0 + load(row);
      s1 = s1 + load(row + W);
      s2 = s2 + load(row + 2 * W);
      s3 = s3 + load(row + 3 * W);
    }
    store<T>(sums + j, s0);
    store<T>(sums + j + W, s1);
    store<T>(sums + j + 2 * W, s2);
    store<T>(sums + j + 3 * W, s3);
  }
  for_vectors<T>(n - j, [&](ptrdiff_t i, int lanes) {
    Vec<T> s = load_part(sums + j + i, lanes);
    for (ptrdiff_t r = 0; r < rows; ++r) s = s + load_part(x + (order ? order[r] : r) * x_row + j + i, lanes);
    store_part<T>(sums + j + i, s, lanes);
  });
}

// philox() of as many blocks as a vector has lanes of 64 bits, words in order. Upper halves of lanes are left
// as they come.
using Words = typename VecTypes<double>::unsigned_ints;
FUSEDLSTM_INLINE Words multiply_lower_halves(Words a, uint64_t b) {
#if defined(FUSEDLSTM_LEVEL_AVX512)
  return (Words)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(static_cast<int64_t>(b)));
#elif defined(FUSEDLSTM_LEVEL_AVX2)
  return (Words)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(static_cast<int64_t>(b)));
#else
  return (a & 0xffffffff) * b;
#endif
}
constexpr int kPhiloxBlocks = kLanes<double>;
FUSEDLSTM_INLINE void philox_blocks(DropoutKey key, uint32_t row, uint32_t step, uint32_t block,
                                    uint32_t (&words)[4 * kPhiloxBlocks]) {
  Words c0{}, c1 = Words{} + step, c2 = Words{} + row, c3 = Words{} + key.stream;
  for (int i = 0; i < kPhiloxBlocks; ++i) c0[i] = block + static_cast<uint32_t>(i);
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
    const Words p0 = multiply_lower_halves(c0, 0xD2511F53), p1 = multiply_lower_halves(c2, 0xCD9E8D57);
    c0 = (p1 >> 32) ^ c1 ^ k0;
    c1 = p1;
    c2 = (p0 >> 32) ^ c3 ^ k1;
    c3 = p0;
  }
  const Vec<double> first = reinterpret_cast<Vec<double>>((c0 & 0xffffffff) | c1 << 32),
                    second = reinterpret_cast<Vec<double>>((c2 & 0xffffffff) | c3 << 32);
  constexpr std::make_integer_sequence<int, kPhiloxBlocks> lanes{};
  const Vec<double> in_order[2] = {interleave<double, 0>(first, second, lanes),
                                   interleave<double, kPhiloxBlocks / 2>(first, second, lanes)};
  static_assert(sizeof in_order == sizeof words);
  __builtin_memcpy(words, in_order, sizeof words);
}

template <class T>
void dropout_row(ptrdiff_t n, DropoutKey key, uint32_t row, uint32_t step, T rate, const T* x, T* y) {
  constexpr ptrdiff_t together = 4 * kPhiloxBlocks;
  typedef uint32_t Random __attribute__((vector_size(4 * kLanes<T>)));
  const uint32_t dropped_below = static_cast<uint32_t>(static_cast<double>(rate) * 4294967296.0);
  const T scale = T(1) / (T(1) - rate);
  for (ptrdiff_t j = 0; j < n; j += together) {
    uint32_t words[together];
    philox_blocks(key, row, step, static_cast<uint32_t>(j / 4), words);
    for_vectors<T>(n - j < together ? n - j : together, [&](ptrdiff_t i, int lanes) {
      Random random;
      __builtin_memcpy(&random, words + i, sizeof random);
      const auto dropped =
          __builtin_convertvector(random, typename VecTypes<T>::unsigned_ints) < dropped_below;
      store_part<T>(y + j + i, dropped ? Vec<T>{} : load_part(x + j + i, lanes) * scale, lanes);
    });
  }
}

// log sum_j e^{z_j} = z_max + log sum_j e^{z_j - z_max}; returns the second term, so that -log p_t is
// (that term) - (z_t - z_max) without cancellation.
template <class T>
T softmax_row(ptrdiff_t V, const T* logits, T scale, T* d, T* largest) {
  const T minus_infinity = static_cast<T>(-__builtin_inf());
  const auto load_logits = [&](ptrdiff_t j, int lanes) {
    if (lanes == kLanes<T>) return load(logits + j);
    Vec<T> z = broadcast<T>(minus_infinity);
    for (int i = 0; i < lanes; ++i) z[i] = logits[j + i];
    return z;
  };
  Vec<T> top = broadcast<T>(minus_infinity);
  for_vectors<T>(V, [&](ptrdiff_t j, int lanes) { top = at_least(load_logits(j, lanes), top); });
  T z_max = top[0];
  for (int i = 1; i < kLanes<T>; ++i) z_max = top[i] > z_max || top[i] != top[i] ? top[i] : z_max;
  LaneSum<T> sum;
  sum.add(V, [&](Vec<T> s, ptrdiff_t j, int lanes) {
    const Vec<T> e = exp<T>(load_logits(j, lanes) - z_max);
    if (d) store_part<T>(d + j, e, lanes);
    return s + e;
  });
  const T total = sum.total();
  if (d) {
    const T factor = scale / total;
    for_vectors<T>(
        V, [&](ptrdiff_t j, int lanes) { store_part<T>(d + j, load_part(d + j, lanes) * factor, lanes); });
  }
  *largest = z_max;
  return log<T>(broadcast<T>(total))[0];
}

// sum_j (z_j - reference)
template <class T>
T sum_of_differences(ptrdiff_t V, const T* z, T reference) {
  LaneSum<T> sum;
  sum.add(V, [&](Vec<T> s, ptrdiff_t j, int lanes) {
    Vec<T> part = broadcast<T>(reference);
    if (lanes == kLanes<T>)
      part = load(z + j);
    else
      for (int i = 0; i < lanes; ++i) part[i] = z[j + i];
    return s + (part - reference);
  });
  return sum.total();
}

template <class T>
void add_constant(ptrdiff_t n, T constant, T* x) {
  for_vectors<T>(
      n, [&](ptrdiff_t j, int lanes) { store_part<T>(x + j, load_part(x + j, lanes) + constant, lanes); });
}

// Blocks are summed in T, block sums in double, in order: the caller may cut only at multiples of kSumBlock.
template <class T, class Value>
FUSEDLSTM_INLINE double block_sum(ptrdiff_t n, const Value& value) {
  double sum = 0;
  for (ptrdiff_t j0 = 0; j0 < n; j0 += kSumBlock) {
    LaneSum<T> part;
    part.add(n - j0 < kSumBlock ? n - j0 : kSumBlock,
             [&](Vec<T> s, ptrdiff_t j, int lanes) { return value(s, j0 + j, lanes); });
    sum += static_cast<double>(part.total());
  }
  return sum;
}

template <class T>
double sum_of_squares(ptrdiff_t n, const T* x) {
  return block_sum<T>(n, [&](Vec<T> s, ptrdiff_t j, int lanes) {
    const Vec<T> a = load_part(x + j, lanes);
    return fma(a, a, s);
  });
}

// sum (y - target)^2, and dy = factor * (y - target) where wanted
template <class T>
double squared_error(ptrdiff_t n, const T* y, const T* target, T factor, T* dy) {
  return block_sum<T>(n, [&](Vec<T> s, ptrdiff_t j, int lanes) {
    const Vec<T> e = load_part(y + j, lanes) - load_part(target + j, lanes);
    if (dy) store_part<T>(dy + j, e * factor, lanes);
    return fma(e, e, s);
  });
}

template <class T>
void scale(ptrdiff_t n, T factor, T* x) {
  for_vectors<T>(
      n, [&](ptrdiff_t j, int lanes) { store_part<T>(x + j, load_part(x + j, lanes) * factor, lanes); });
}

// g = gradient_scale * gradient + weight_decay * p;  v = momentum * v + g;  p -= lr * (v, or g + momentum *
// v)
template <class T>
void sgd(ptrdiff_t n, const SgdStep<T>& s, const T* gradient, T* velocity, T* parameter) {
  for_vectors<T>(n, [&](ptrdiff_t j, int lanes) {
    const Vec<T> p = load_part(parameter + j, lanes);
    Vec<T> g = fma(p, broadcast<T>(s.weight_decay), load_part(gradient + j, lanes) * s.gradient_scale);
    if (velocity) {
      const Vec<T> v = fma(load_part(velocity + j, lanes), broadcast<T>(s.momentum), g);
      store_part<T>(velocity + j, v, lanes);
      g = s.nesterov ? fma(v, broadcast<T>(s.momentum), g) : v;
    }
    store_part<T>(parameter + j, fma(g, broadcast<T>(-s.lr), p), lanes);
  });
}

// Kingma and Ba 2015; with `shrink` below 1, weights decay apart from the gradient: Loshchilov and Hutter
// 2019.
//   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  p = shrink p - step_size m /
//   (sqrt(v)/bias2_root + eps)
template <class T>
void adam(ptrdiff_t n, const AdamStep<T>& s, const T* gradient, T* m, T* v, T* parameter) {
  for_vectors<T>(n, [&](ptrdiff_t j, int lanes) {
    const Vec<T> p = load_part(parameter + j, lanes);
    const Vec<T> g = fma(p, broadcast<T>(s.weight_decay), load_part(gradient + j, lanes) * s.gradient_scale);
    const Vec<T> m_j = fma(load_part(m + j, lanes), broadcast<T>(s.beta1), g * s.one_minus_beta1);
    const Vec<T> v_j = fma(load_part(v + j, lanes), broadcast<T>(s.beta2), g * g * s.one_minus_beta2);
    store_part<T>(m + j, m_j, lanes);
    store_part<T>(v + j, v_j, lanes);
    const Vec<T> root = square_root(v_j) / s.bias2_root + s.eps;
    store_part<T>(parameter + j, fma(m_j / root, broadcast<T>(-s.step_size), p * s.shrink), lanes);
  });
}

#define FUSEDLSTM_MAP(name)                                                                                 \
  template <class T>                                                                                        \
  void name##_array(ptrdiff_t n, const T* x, T* y) {                                                        \
    for_vectors<T>(                                                                                         \
        n, [&](ptrdiff_t j, int lanes) { store_part<T>(y + j, name<T>(load_part(x + j, lanes)), lanes); }); \
  }
FUSEDLSTM_MAP(exp)
FUSEDLSTM_MAP(log)
FUSEDLSTM_MAP(sigmoid)
FUSEDLSTM_MAP(tanh)
#undef FUSEDLSTM_MAP

}  // namespace
}  // namespace fusedlstm
