#include "lstm/rows.h"

#include <algorithm>
#include <numeric>

namespace fusedlstm {

Rows::Rows(ptrdiff_t N, ptrdiff_t T, const int32_t* lengths)
    : N_(N),
      T_(T),
      sequence_(static_cast<size_t>(N)),
      length_(static_cast<size_t>(N), static_cast<int32_t>(T)) {
  std::iota(sequence_.begin(), sequence_.end(), 0);
  if (lengths) {
    std::stable_sort(sequence_.begin(), sequence_.end(),
                     [&](int32_t a, int32_t b) { return lengths[a] > lengths[b]; });
    for (size_t slot = 0; slot < sequence_.size(); ++slot) length_[slot] = lengths[sequence_[slot]];
  }
  const ptrdiff_t steps = N > 0 ? length_[0] : 0;
  start_.push_back(0);
  ptrdiff_t running = N;
  for (ptrdiff_t s = 0; s < steps; ++s) {
    while (running > 0 && length_[static_cast<size_t>(running - 1)] <= s) --running;
    start_.push_back(start_.back() + running);
  }
}

}  // namespace fusedlstm
