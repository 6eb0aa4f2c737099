// What a training forward keeps for backward. Per layer and direction, in its own order of steps (rows.h),
// and in values per hidden unit and row (float32: bytes):
//
//   full   gates after activation, c, h; backward writes the derivatives of the pre-activations over the
//   gates
//          4 + 1 + 1 values: 24
//   half   gates in 16 bits (kernels/cell.h), c, h: 2 + 1 + 1 values: 16
//   lean   h, and c where a chunk of steps begins. Backward makes the gates of a chunk again: all h are
//   known,
//          so that is one large product, and with the same order of every sum the same bits: about 4
//
// and the input rows where nobody else has them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "lstm/rows.h"
#include "lstm/shape.h"
#include "runtime/memory.h"

namespace fusedlstm {

template <class T>
struct MatrixRows {  // rows of a matrix that lives elsewhere
  const T* data = nullptr;
  ptrdiff_t pitch = 0;
  const T* row(ptrdiff_t r) const { return data + r * pitch; }
};

enum class TapeMode { kNone, kFull, kHalf, kLean };  // none: inference

// The steps in runs of a few hundred rows. A chunk has its input product made at once, and in backward its
// share of the weight gradients.
class Chunks {
 public:
  Chunks(const Rows& rows, ptrdiff_t rows_wanted) : begin_{0}, state_{0} {
    for (ptrdiff_t s = 0; s < rows.steps();) {
      ptrdiff_t end = s + 1;
      while (end < rows.steps() && rows.start(end + 1) - rows.start(s) <= rows_wanted) ++end;
      begin_.push_back(end);
      state_.push_back(state_.back() + rows.active(s));
      most_rows_ = std::max(most_rows_, rows.start(end) - rows.start(s));
      s = end;
    }
  }
  ptrdiff_t count() const { return static_cast<ptrdiff_t>(begin_.size()) - 1; }
  ptrdiff_t begin(ptrdiff_t chunk) const { return begin_[static_cast<size_t>(chunk)]; }
  ptrdiff_t end(ptrdiff_t chunk) const { return begin(chunk + 1); }
  ptrdiff_t most_rows() const { return most_rows_; }
  // Row of the c before a chunk in a matrix of those of all chunks, as many for each as are active there.
  ptrdiff_t state(ptrdiff_t chunk) const { return state_[static_cast<size_t>(chunk)]; }

 private:
  std::vector<ptrdiff_t> begin_, state_;
  ptrdiff_t most_rows_ = 0;
};

template <class T>
struct LayerTape {
  Buffer<T> gates;           // full: (P, 4, H_pad), gates_pitch apart
  Buffer<uint16_t> gates16;  // half: (P, 4, H_pad)
  Buffer<T> c;         // full, half: (N + P, H_pad), state_pitch apart; lean, none: the last, (N, H_pad)
  Buffer<T> c_chunks;  // lean: before each chunk
  Buffer<T> h;         // (N + P, H_pad), state_pitch apart; or those before and after a step, (2 N, H_pad)
  Buffer<T> copy;      // the input rows, where they are not somebody else's
  MatrixRows<T> x;     // (P, inputs); null for token input and where chunks of it are gathered
  bool two_steps = false;  // of h: all that inference needs where no layer follows

  // Rows of h.
  ptrdiff_t h_before(const Rows& rows, ptrdiff_t s) const {
    return two_steps ? s % 2 * rows.batch() : rows.state_before(s);
  }
  ptrdiff_t h_after(const Rows& rows, ptrdiff_t s) const {
    return two_steps ? (s + 1) % 2 * rows.batch() : rows.state_after(s);
  }
  ptrdiff_t h_final(const Rows& rows, ptrdiff_t slot) const {
    return two_steps ? rows.length(slot) % 2 * rows.batch() + slot : rows.final_state(slot);
  }
};

// Token input: the rows of the embedding that occur, each once, and which of them every packed row takes.
template <class T>
struct TokenInput {
  ptrdiff_t vocabulary = 0;                // rows of the embedding
  std::vector<int32_t> distinct;           // ascending token ids
  std::vector<std::vector<int32_t>> slot;  // [direction][packed row] -> index into distinct
  Buffer<T> embedded;                      // (distinct, I), row_pitch(I) apart
};

template <class T>
struct Tape {
  LstmShape shape;
  Rows rows;
  TapeMode mode;
  Chunks chunks;
  T dropout;
  uint64_t seed;
  std::vector<LayerTape<T>> layers;  // by layer * D + direction
  TokenInput<T> tokens;              // distinct is empty for dense input
  bool token_input = false;

  ptrdiff_t gates_pitch() const { return row_pitch<T>(4 * shape.hidden_padded()); }
  ptrdiff_t state_pitch() const { return row_pitch<T>(shape.hidden_size); }
  size_t bytes() const {
    size_t sum = tokens.embedded.bytes();
    for (const LayerTape<T>& l : layers)
      sum += l.gates.bytes() + l.gates16.bytes() + l.c.bytes() + l.c_chunks.bytes() + l.h.bytes() +
             l.copy.bytes();
    return sum;
  }
};

// States (N, H) of one layer and direction (null: 0) in the order of slots, as the first N rows of a state
// matrix: those of some slots.
template <class T>
void states_by_slot(const Rows& rows, const RowSet& slots, const T* states, ptrdiff_t H, ptrdiff_t H_pad,
                    ptrdiff_t pitch, T* out) {
  for (ptrdiff_t slot = slots.first; slot < slots.end; slot += slots.stride) {
    T* row = out + slot * pitch;
    const T* state = states ? states + rows.sequence(slot) * H : nullptr;
    for (ptrdiff_t u = 0; u < H; ++u) row[u] = state ? state[u] : T(0);
    for (ptrdiff_t u = H; u < H_pad; ++u) row[u] = T(0);
  }
}

}  // namespace fusedlstm
