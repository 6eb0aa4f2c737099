#include "decode/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "decode/draw.h"
#include "kernels/philox.h"

namespace fusedlstm {
namespace {

constexpr ptrdiff_t kBlock = 64;  // of the running sum over all tokens

// Numbers >= 0 fall into 2048 buckets of about 1/8 of their size, in order.
constexpr size_t kBuckets = 2048;
size_t bucket_of(double value) { return std::bit_cast<uint32_t>(static_cast<float>(value)) >> 20; }

}  // namespace

template <class T>
Sampler<T>::Sampler(const Kernels<T>& kernels, ptrdiff_t V)
    : kernels_(kernels),
      V_(V),
      scaled_(static_cast<size_t>(V)),
      weight_(static_cast<size_t>(V)),
      bucket_mass_(kBuckets) {}

template <class T>
T Sampler<T>::log_sum(const T* z, T* largest) const {
  const T sum = kernels_.softmax_row(V_, z, T(1), nullptr, largest);
  if (!std::isfinite(*largest) || !std::isfinite(sum))
    throw std::domain_error("no token can be chosen: the largest logit is " + std::to_string(*largest) +
                            (std::isfinite(*largest) ? " and another one is not a number" : ""));
  return sum;
}

template <class T>
void Sampler<T>::weigh(double temperature, const T* scores, T largest) {
  const T inverse = static_cast<T>(std::min(1 / temperature, double{std::numeric_limits<T>::max()}));
  for (ptrdiff_t j = 0; j < V_; ++j) scaled_[static_cast<size_t>(j)] = (scores[j] - largest) * inverse;
  kernels_.exp(V_, scaled_.data(), weight_.data());
}

// Keeps the shortest beginning of kept_, in the order `before`, whose mass reaches target: by buckets of that
// order to the border, then by halves.
template <class T>
template <class Before, class Bucket, class Mass>
void Sampler<T>::keep_first(const Before& before, const Bucket& bucket, const Mass& mass, double target) {
  std::fill(bucket_mass_.begin(), bucket_mass_.end(), 0.0);
  for (const int32_t token : kept_) bucket_mass_[bucket(token)] += mass(token);
  size_t at = 0;
  double sum = 0;
  while (at + 1 < kBuckets && sum + bucket_mass_[at] < target) sum += bucket_mass_[at++];
  border_.clear();
  for (const int32_t token : kept_)
    if (bucket(token) == at) border_.push_back(token);
  if (border_.empty()) return;  // rounding: the target is the mass of all
  auto begin = border_.begin(), end = border_.end();
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, before);
    double half = 0;
    for (auto token = begin; token != middle; ++token) half += mass(*token);
    if (sum + half >= target) {
      end = middle;
    } else {
      sum += half;
      begin = middle;
    }
  }
  const int32_t last = *begin;
  size_t count = 0;
  for (const int32_t token : kept_) {
    kept_[count] = token;
    count += !before(last, token);
  }
  kept_.resize(count);
}

template <class T>
void Sampler<T>::keep_likeliest(bool by_count, double target) {
  const auto before = [&](int32_t a, int32_t b) {
    const double wa = weight(a), wb = weight(b);
    return wa > wb || (wa == wb && a < b);
  };
  const auto bucket = [&](int32_t token) { return kBuckets - 1 - bucket_of(weight(token)); };
  if (by_count)
    keep_first(before, bucket, [](int32_t) { return 1.0; }, target);
  else
    keep_first(before, bucket, [&](int32_t token) { return weight(token); }, target);
}

template <class T>
void Sampler<T>::keep_typical(double typical_p) {
  // H = -sum p log p; with p = w / total and log w = s: | -log p - H | = | sum w s / total - s |
  const auto log_weight = [&](int32_t token) {
    return static_cast<double>(scaled_[static_cast<size_t>(token)]);
  };
  double total = 0, weighted = 0;
  for (const int32_t token : kept_) {
    const double w = weight(token);
    total += w;
    if (w > 0) weighted += w * log_weight(token);
  }
  const double mean = weighted / total;
  const auto distance = [&](int32_t token) { return std::abs(mean - log_weight(token)); };
  const auto before = [&](int32_t a, int32_t b) {
    const double da = distance(a), db = distance(b);
    return da < db || (da == db && a < b);
  };
  keep_first(
      before, [&](int32_t token) { return bucket_of(distance(token)); },
      [&](int32_t token) { return weight(token); }, typical_p * total);
}

template <class T>
int32_t Sampler<T>::draw(double u) const {
  const auto sum_of = [&](ptrdiff_t begin, ptrdiff_t end) {
    double lane[4] = {};
    ptrdiff_t j = begin;
    for (; j + 4 <= end; j += 4)
      for (ptrdiff_t i = 0; i < 4; ++i) lane[i] += static_cast<double>(weight_[static_cast<size_t>(j + i)]);
    for (; j < end; ++j) lane[0] += static_cast<double>(weight_[static_cast<size_t>(j)]);
    return (lane[0] + lane[1]) + (lane[2] + lane[3]);
  };
  double total = 0;
  for (ptrdiff_t begin = 0; begin < V_; begin += kBlock) total += sum_of(begin, std::min(begin + kBlock, V_));
  double sum = 0;
  int32_t token = 0;
  for (ptrdiff_t begin = 0; begin < V_; begin += kBlock) {
    const ptrdiff_t end = std::min(begin + kBlock, V_);
    const double after = sum + sum_of(begin, end);
    if (after > u * total) {
      for (ptrdiff_t j = begin; j < end; ++j) {
        const double w = weight(static_cast<int32_t>(j));
        if (w > 0) token = static_cast<int32_t>(j);  // the last one where rounding hides the crossing
        sum += w;
        if (sum > u * total) break;
      }
      return token;
    }
    sum = after;
  }
  return token;
}

template <class T>
int32_t Sampler<T>::draw_of_kept(double u) const {
  double total = 0, sum = 0;
  for (const int32_t token : kept_) total += weight(token);
  int32_t chosen = 0;
  for (const int32_t token : kept_) {
    if (weight(token) > 0) chosen = token;
    sum += weight(token);
    if (sum > u * total) break;
  }
  return chosen;
}

template <class T>
int32_t Sampler<T>::choose(const SamplingOptions& options, const T* scores, T largest, uint64_t seed,
                           uint32_t index) {
  if (options.greedy) return static_cast<int32_t>(std::find(scores, scores + V_, largest) - scores);
  weigh(options.temperature, scores, largest);
  const Philox4 random = philox(seed, kSampleStream, 0, index, 0);
  const double u = uniform(random.word[0], random.word[1]);
  const bool by_k = options.top_k > 0 && options.top_k < V_;
  if (!by_k && options.top_p == 1 && options.min_p == 0 && options.typical_p == 1) return draw(u);
  kept_.resize(static_cast<size_t>(V_));
  std::iota(kept_.begin(), kept_.end(), 0);
  if (by_k) keep_likeliest(true, static_cast<double>(options.top_k));
  if (options.top_p < 1) {
    double total = 0;
    for (const int32_t token : kept_) total += weight(token);
    keep_likeliest(false, options.top_p * total);
  }
  if (options.min_p > 0) std::erase_if(kept_, [&](int32_t token) { return weight(token) < options.min_p; });
  if (options.typical_p < 1) keep_typical(options.typical_p);
  return draw_of_kept(u);
}

template <class T>
std::vector<int32_t> largest_tokens(const T* logits, ptrdiff_t V, ptrdiff_t count) {
  std::vector<int32_t> all(static_cast<size_t>(V)), best(static_cast<size_t>(std::min(count, V)));
  std::iota(all.begin(), all.end(), 0);
  std::partial_sort_copy(all.begin(), all.end(), best.begin(), best.end(), [&](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  });
  return best;
}

template class Sampler<float>;
template class Sampler<double>;
template std::vector<int32_t> largest_tokens(const float*, ptrdiff_t, ptrdiff_t);
template std::vector<int32_t> largest_tokens(const double*, ptrdiff_t, ptrdiff_t);

}  // namespace fusedlstm
