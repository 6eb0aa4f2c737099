// How a layer's recurrence is shared among threads. No choice here changes a bit of any result.
#pragma once

#include "lstm/rows.h"
#include "runtime/products.h"

namespace fusedlstm {

// The recurrence is cut by sequences or by hidden units.
//   sequences: no barrier at all, but every thread streams all recurrent weights in every step
//   units:     each thread keeps its own weights in its cache; one barrier per step
// Sequences are worth it once a thread's rows fill several register tiles, which hides the streaming.
inline bool split_by_sequences(ptrdiff_t N, int threads) {
  return threads == 1 || N >= 2 * kTileRows * threads;
}

// Threads for a layer of P rows in all, N of them in the first step, as run_job takes them: one where a step
// is too short to be shared between two barriers, or the whole too short to wake anybody.
inline int layer_threads(ptrdiff_t N, ptrdiff_t P, ptrdiff_t H, ptrdiff_t inputs) {
  const double row = 8.0 * static_cast<double>(H) * static_cast<double>(H + inputs);
  const bool long_steps = split_by_sequences(N, num_threads()) || row * static_cast<double>(N) > 4e5;
  return long_steps ? threads_for(row * static_cast<double>(P)) : 1;
}

// The slots one thread works on when the recurrence is cut by sequences: thread, thread + threads, ... so
// that ragged batches stay balanced.
struct Slots {
  ptrdiff_t first, stride;
  ptrdiff_t count(ptrdiff_t active) const {
    return active > first ? (active - first + stride - 1) / stride : 0;
  }
};

// The slots whose states a thread sets and reads: those it works on, when the recurrence is cut by sequences.
// Otherwise a run of them, and a barrier must lie between that and the steps.
inline RowSet thread_slots(const Rows& rows, const Team& team) {
  if (split_by_sequences(rows.batch(), team.threads())) return {team.thread(), rows.batch(), team.threads()};
  const Share share = share_of(rows.batch(), team.thread(), team.threads());
  return {share.begin, share.end, 1};
}

// A thread's rows of the steps [begin, end), counted from the first of all.
struct ThreadRows : RowSet {
  bool own;  // those of its slots
};

// Where the recurrence is cut by sequences and all these steps have as many slots for every thread, the rows
// of a thread's slots lie at equal distances. Then it makes itself, in its own cache, what its steps take: no
// barrier, and no line that another core has written. Elsewhere the rows are cut into runs.
inline ThreadRows thread_rows(const Rows& rows, ptrdiff_t begin, ptrdiff_t end, const Team& team) {
  const ptrdiff_t count = rows.start(end) - rows.start(begin), active = rows.active(begin);
  if (split_by_sequences(rows.batch(), team.threads()) && active % team.threads() == 0 &&
      rows.active(end - 1) == active)
    return {{team.thread(), count, team.threads()}, true};
  const Share share = share_of(count, team.thread(), team.threads());
  return {{share.begin, share.end, 1}, false};
}

}  // namespace fusedlstm
