#include "decode/sampler.h"

#include <algorithm>
#include <numeric>

#include "kernels/philox.h"

namespace fusedlstm {

template <class T>
Sampler<T>::Sampler(const Kernels<T>& kernels, int64_t V, const Sampling& sampling)
    : kernels_(kernels), sampling_(sampling), V_(V), weight_(static_cast<size_t>(V)) {}

template <class T>
Choice<T> Sampler<T>::choose(const T* logits, uint64_t seed, uint32_t index) {
  const int32_t best = static_cast<int32_t>(std::max_element(logits, logits + V_) - logits);
  T largest;
  const T log_sum = kernels_.softmax_row(V_, logits, T(1), nullptr, &largest);
  const auto choice = [&](int32_t token) { return Choice<T>{token, (logits[token] - largest) - log_sum}; };
  if (sampling_.greedy) return choice(best);

  const T inverse = static_cast<T>(1 / sampling_.temperature);
  for (int64_t j = 0; j < V_; ++j) weight_[static_cast<size_t>(j)] = (logits[j] - largest) * inverse;
  kernels_.exp(V_, weight_.data(), weight_.data());

  // Filters mark what is kept; without any, everything is.
  const bool by_k = sampling_.top_k > 0 && sampling_.top_k < V_, by_p = sampling_.top_p < 1;
  if (by_k || by_p) {
    const auto likelier = [&](int32_t a, int32_t b) {
      const T wa = weight_[static_cast<size_t>(a)], wb = weight_[static_cast<size_t>(b)];
      return wa > wb || (wa == wb && a < b);
    };
    order_.resize(static_cast<size_t>(V_));
    std::iota(order_.begin(), order_.end(), 0);
    size_t count = order_.size();
    if (by_k) {
      count = static_cast<size_t>(sampling_.top_k);
      std::nth_element(order_.begin(), order_.begin() + static_cast<ptrdiff_t>(count) - 1, order_.end(),
                       likelier);
    }
    if (by_p) {
      double total = 0;
      std::sort(order_.begin(), order_.begin() + static_cast<ptrdiff_t>(by_k ? count : 0));
      for (size_t j = 0; j < count; ++j)
        total += static_cast<double>(weight_[static_cast<size_t>(order_[j])]);
      // The most probable come off a heap one by one: few are needed.
      const auto less_likely = [&](int32_t a, int32_t b) { return likelier(b, a); };
      const auto end = order_.begin() + static_cast<ptrdiff_t>(count);
      std::make_heap(order_.begin(), end, less_likely);
      std::vector<int32_t> likeliest;
      double share = 0;
      for (auto heap = end; heap != order_.begin() && (likeliest.empty() || share < sampling_.top_p * total);
           --heap) {
        std::pop_heap(order_.begin(), heap, less_likely);
        likeliest.push_back(*(heap - 1));
        share += static_cast<double>(weight_[static_cast<size_t>(likeliest.back())]);
      }
      order_ = std::move(likeliest);
      count = order_.size();
    }
    kept_.assign(static_cast<size_t>(V_), false);
    for (size_t j = 0; j < count; ++j) kept_[static_cast<size_t>(order_[j])] = true;
    for (int64_t j = 0; j < V_; ++j)
      if (!kept_[static_cast<size_t>(j)]) weight_[static_cast<size_t>(j)] = T(0);
  }

  double total = 0;
  for (const T weight : weight_) total += static_cast<double>(weight);
  const Philox4 random = philox(seed, kSampleStream, 0, index, 0);
  const double u =
      (static_cast<double>(random.word[0] >> 5) * 67108864.0 + static_cast<double>(random.word[1] >> 6)) *
      0x1p-53;
  double sum = 0;
  for (int64_t j = 0; j < V_; ++j) {
    sum += static_cast<double>(weight_[static_cast<size_t>(j)]);
    if (sum > u * total) return choice(static_cast<int32_t>(j));
  }
  return choice(best);  // only when the logits are not numbers
}

template class Sampler<float>;
template class Sampler<double>;

}  // namespace fusedlstm
