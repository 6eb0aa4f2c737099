// Additive attention scores of one row over the S memories of its source, forward and backward.
//
//   u_s = k_s + q + cov_s w        score_s = v . tanh(u_s)              Bahdanau, Cho, Bengio 2015
//
// with keys k_s and a query q of A values; cov is the coverage of See, Liu, Manning 2017. Keys lie in the
// panels that products take, (A, S): vectors run over s, a score is one chain over a, and what is summed over
// s goes through 16 virtual lanes.
#pragma once

#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace fusedlstm {
namespace {

template <class T>
FUSEDLSTM_INLINE Vec<T> additive_tanh(Vec<T> key, T query, Vec<T> coverage, const T* w, ptrdiff_t a) {
  const Vec<T> sum = key + query;
  return tanh<T>(w ? fma(coverage, broadcast<T>(w[a]), sum) : sum);
}

template <class T>
void additive_scores(const AdditiveScores<T>& g) {
  constexpr int W = kLanes<T>;
  for (ptrdiff_t s = 0; s < g.S; s += W) {
    const T* const keys = g.keys + s / kPanel<T> * (g.A * kPanel<T>)+s % kPanel<T>;
    const int lanes = static_cast<int>(smaller<ptrdiff_t>(W, g.S - s));
    const Vec<T> coverage = g.w ? load_part(g.coverage + s, lanes) : Vec<T>{};
    Vec<T> score{};
    for (ptrdiff_t a = 0; a < g.A; ++a)
      score = fma(broadcast<T>(g.v[a]),
                  additive_tanh<T>(load(keys + a * kPanel<T>), g.query[a], coverage, g.w, a), score);
    store_part<T>(g.scores + s, score, lanes);
  }
}

// With t = tanh(u_s) and d_s the derivative of score_s:  du_s = d_s v (1 - t^2)
template <class T>
void additive_backward(const AdditiveBackward<T>& g) {
  constexpr int W = kLanes<T>;
  const AdditiveScores<T>& f = g.forward;
  const Vec<T> one = broadcast<T>(1);
  for (ptrdiff_t a = 0; a < f.A; ++a) {
    LaneSum<T> d_query, d_v, d_w;
    const auto sum = [&](LaneSum<T>& sums, ptrdiff_t s, Vec<T> x, Vec<T> y) {
      T* const lane = sums.lane + s % 16;
      store<T>(lane, fma(x, y, load(lane)));
    };
    for (ptrdiff_t s = 0; s < f.S; s += W) {
      const ptrdiff_t at = s / kPanel<T> * (f.A * kPanel<T>)+a * kPanel<T> + s % kPanel<T>;
      const int lanes = static_cast<int>(smaller<ptrdiff_t>(W, f.S - s));
      const Vec<T> coverage = f.w ? load_part(f.coverage + s, lanes) : Vec<T>{};
      const Vec<T> t = additive_tanh<T>(load(f.keys + at), f.query[a], coverage, f.w, a);
      const Vec<T> d = load_part(g.d_scores + s, lanes);  // 0 in lanes that do not exist
      const Vec<T> du = d * f.v[a] * ((one - t) * (one + t));
      store<T>(g.d_keys + at, load(g.d_keys + at) + du);
      sum(d_query, s, du, one);
      sum(d_v, s, d, t);
      if (!f.w) continue;
      sum(d_w, s, du, coverage);
      store_part<T>(g.d_coverage + s, fma(du, broadcast<T>(f.w[a]), load_part(g.d_coverage + s, lanes)),
                    lanes);
    }
    g.d_query[a] = d_query.total();
    g.d_v[a] = d_v.total();
    if (f.w) g.d_w[a] = d_w.total();
  }
}

}  // namespace
}  // namespace fusedlstm
