// What a training forward keeps for backward.
//
// Per layer and direction, in its own order of steps (rows.h): the gates (after activation; backward writes
// the derivatives of the pre-activations over them), c and h of all steps with the N initial states in front,
// and the input rows. 4 + 1 + 1 values per hidden unit and row: 24 bytes in float32.
#pragma once

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

template <class T>
struct LayerTape {
  Buffer<T> gates;  // (P, 4, H_pad), gates_pitch apart; a chunk of it for inference
  Buffer<T> c;      // (N + P, H_pad), state_pitch apart; (N, H_pad) for inference
  Buffer<T> h;      // (N + P, H_pad), state_pitch apart
  Buffer<T> copy;   // the input rows, where they are not somebody else's
  MatrixRows<T> x;  // (P, inputs); null for token input
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
  T dropout;
  uint64_t seed;
  std::vector<LayerTape<T>> layers;  // by layer * D + direction
  TokenInput<T> tokens;              // distinct is empty for dense input
  bool token_input = false;
  bool consumed = false;

  ptrdiff_t gates_pitch() const { return row_pitch<T>(4 * shape.hidden_padded()); }
  ptrdiff_t state_pitch() const { return row_pitch<T>(shape.hidden_size); }
  size_t bytes() const {
    size_t sum = tokens.embedded.bytes();
    for (const LayerTape<T>& l : layers) sum += l.gates.bytes() + l.c.bytes() + l.h.bytes() + l.copy.bytes();
    return sum;
  }
};

}  // namespace fusedlstm
