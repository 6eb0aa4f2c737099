// The valid (sequence, step) pairs of a batch as one list of packed rows, step by step.
//
// Sequences take slots, longest first, so that the ones still running at step s are always slots 0 ..
// active(s) - 1 and no arithmetic is spent on padding. Row start(s) + r is step s of slot r. Step s is time s
// in the forward direction and time length - 1 - s in the reverse one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fusedlstm {

// Some rows of a matrix, or slots: for (r = first; r < end; r += stride).
struct RowSet {
  ptrdiff_t first, end, stride;

  ptrdiff_t size() const { return end > first ? (end - first + stride - 1) / stride : 0; }
};

class Rows {
 public:
  // lengths: N values in 0 .. T, or null for N sequences of length T.
  Rows(ptrdiff_t N, ptrdiff_t T, const int32_t* lengths);

  ptrdiff_t batch() const { return N_; }
  ptrdiff_t time() const { return T_; }
  ptrdiff_t steps() const { return static_cast<ptrdiff_t>(start_.size()) - 1; }
  ptrdiff_t total() const { return start_.back(); }
  ptrdiff_t start(ptrdiff_t s) const { return start_[static_cast<size_t>(s)]; }
  ptrdiff_t active(ptrdiff_t s) const { return start(s + 1) - start(s); }
  ptrdiff_t sequence(ptrdiff_t slot) const { return sequence_[static_cast<size_t>(slot)]; }
  ptrdiff_t length(ptrdiff_t slot) const { return length_[static_cast<size_t>(slot)]; }
  ptrdiff_t time_of(ptrdiff_t s, ptrdiff_t slot, ptrdiff_t direction) const {
    return direction == 0 ? s : length(slot) - 1 - s;
  }
  // Row of the user's (N, T) layout.
  ptrdiff_t user_row(ptrdiff_t s, ptrdiff_t slot, ptrdiff_t direction) const {
    return sequence(slot) * T_ + time_of(s, slot, direction);
  }
  // Row of a state matrix that begins with the N initial states: where step s - 1 of a slot lies, in order of
  // steps.
  ptrdiff_t state_before(ptrdiff_t s) const { return s == 0 ? 0 : N_ + start(s - 1); }
  ptrdiff_t state_after(ptrdiff_t s) const { return N_ + start(s); }
  ptrdiff_t final_state(ptrdiff_t slot) const {
    return length(slot) == 0 ? slot : N_ + start(length(slot) - 1) + slot;
  }
  // True when packed rows are the user's rows in the user's order.
  bool same_as_user() const { return (N_ == 1 || T_ == 1) && total() == N_ * T_; }

 private:
  ptrdiff_t N_, T_;
  std::vector<int32_t> sequence_, length_;  // by slot
  std::vector<ptrdiff_t> start_;            // by step, one more than there are steps
};

}  // namespace fusedlstm
