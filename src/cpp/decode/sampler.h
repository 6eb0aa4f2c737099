// From the scores of one row to the next token.
#pragma once

#include <cstdint>
#include <vector>

#include "decode/options.h"
#include "runtime/cpu.h"

namespace fusedlstm {

// Stream of Philox from which tokens are drawn.
constexpr uint32_t kSampleStream = 0x73616d70;

template <class T>
class Sampler {
 public:
  Sampler(const Kernels<T>& kernels, ptrdiff_t V);

  // log sum_j e^{z_j - z_max} of a row and z_max in *largest. Throws std::domain_error when there is no
  // finite largest or a z is not a number.
  T log_sum(const T* z, T* largest) const;

  // Greedy: the largest score, the lowest id among equals. Else temperature, then the top_k largest, then the
  // smallest set of the most probable whose share reaches top_p, then those whose probability is at least
  // min_p of the largest, then the smallest set whose share reaches typical_p of those whose surprisal
  // -log p is closest to the entropy; lower ids win ties, and each filter sees what the one before has left.
  // Then one draw u in [0, 1) from Philox (seed; stream kSampleStream, row 0, step `index`, block 0): the
  // first kept token, in the order of ids, at which the running sum of e^(score / temperature) exceeds u
  // times the total.
  int32_t choose(const SamplingOptions& options, const T* scores, T largest, uint64_t seed, uint32_t index);

 private:
  void weigh(double temperature, const T* scores, T largest);
  int32_t draw(double u) const;
  int32_t draw_of_kept(double u) const;
  double weight(int32_t token) const { return static_cast<double>(weight_[static_cast<size_t>(token)]); }
  template <class Before, class Bucket, class Mass>
  void keep_first(const Before& before, const Bucket& bucket, const Mass& mass, double target);
  void keep_likeliest(bool by_count, double target);
  void keep_typical(double typical_p);

  const Kernels<T>& kernels_;
  ptrdiff_t V_;
  std::vector<T> scaled_;        // (z - z_max) / temperature
  std::vector<T> weight_;        // e^scaled
  std::vector<int32_t> kept_;    // ids, ascending, once there is a filter
  std::vector<int32_t> border_;  // of keep_first
  std::vector<double> bucket_mass_;
};

// The `count` largest of logits (V), largest first, lower ids first among equals.
template <class T>
std::vector<int32_t> largest_tokens(const T* logits, ptrdiff_t V, ptrdiff_t count);

}  // namespace fusedlstm
