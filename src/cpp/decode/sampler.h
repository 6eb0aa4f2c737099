// From the logits of one row to the next token.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/cpu.h"

namespace fusedlstm {

struct Sampling {
  bool greedy = false;     // the largest logit, the lowest id among equals
  double temperature = 1;  // > 0
  int64_t top_k = 0;       // 0: all
  double top_p = 1;        // 0 < top_p <= 1
};

template <class T>
struct Choice {
  int32_t token;
  T log_probability;  // under softmax(logits): no temperature, no filter
};

// Temperature, then the top_k largest (lower ids win ties), then the smallest set of the most probable whose
// share reaches top_p, then one draw u in [0, 1) from Philox (seed; stream kSampleStream, row 0, step
// `index`, block 0): the first kept token, in the order of ids, at which the running sum of e^(logit /
// temperature) exceeds u times the total.
constexpr uint32_t kSampleStream = 0x73616d70;

template <class T>
class Sampler {
 public:
  Sampler(const Kernels<T>& kernels, int64_t V, const Sampling& sampling);
  Choice<T> choose(const T* logits, uint64_t seed, uint32_t index);

 private:
  const Kernels<T>& kernels_;
  Sampling sampling_;
  int64_t V_;
  std::vector<T> weight_;
  std::vector<int32_t> order_;
  std::vector<bool> kept_;
};

}  // namespace fusedlstm
