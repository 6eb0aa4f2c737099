// Constraints on the next token of one row, and when its text is at an end. Nothing is kept from step to
// step: all of it is a function of the tokens so far.
#pragma once

#include <cstddef>

#include "decode/options.h"

namespace fusedlstm {

struct History {
  const int32_t* tokens;  // the prompt's, then the new ones
  ptrdiff_t count, prompt;
  ptrdiff_t new_tokens() const { return count - prompt; }
};

// Whether `constrain` would do anything, ever and now.
bool may_constrain(const Constraints& constraints);
bool is_constrained(const Constraints& constraints, const History& history);

// scores (V) = logits (V) with, in the order of Hugging Face's generate: repetition penalty, no repeated
// n-gram, banned tokens, minimum length, `allowed` (V, null: all), forced token. What may not follow is
// -inf, a forced token 0.
template <class T>
void constrain(const Constraints& constraints, const History& history, const bool* allowed, ptrdiff_t V,
               const T* logits, T* scores);

// Bytes of the newest token's text that lie behind the first end of a stop string which that token completes;
// -1 where it completes none. Only text of new tokens counts.
ptrdiff_t behind_stop_string(const SamplingOptions& options, const History& history);

}  // namespace fusedlstm
