// From random words to a token.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusedlstm {

// Two words to [0, 1), in steps of 2^-53
inline double uniform(uint32_t high, uint32_t low) {
  return (static_cast<double>(high >> 5) * 0x1p26 + static_cast<double>(low >> 6)) * 0x1p-53;
}

// The first token, in the order of ids, at which the running sum of weights (V) exceeds u times the total; -1
// only when the weights are not numbers.
template <class T>
int32_t draw_by_weight(ptrdiff_t V, const T* weights, double u) {
  double total = 0, sum = 0;
  for (ptrdiff_t j = 0; j < V; ++j) total += static_cast<double>(weights[j]);
  for (ptrdiff_t j = 0; j < V; ++j) {
    sum += static_cast<double>(weights[j]);
    if (sum > u * total) return static_cast<int32_t>(j);
  }
  return -1;
}

}  // namespace fusedlstm
