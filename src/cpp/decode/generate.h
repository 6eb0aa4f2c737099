// The generation loop over any model: first logits in, tokens out, in one call.
// N prompts, n sequences of each, R = N n; V token ids.
#pragma once

#include <functional>

#include "decode/pool.h"

namespace fusedlstm {

template <class T>
struct GenerationRequest {
  ptrdiff_t N;
  const int32_t* prompts;  // what the model was fed, one prompt after the other
  const int32_t* prompt_lengths;
  std::shared_ptr<const SamplingOptions> options;  // R = N options->num_sequences
  const uint64_t* seeds;                           // (R)
  Hooks<T> hooks;
  // (R) ids of one step, -1 for sequences that ended before; and (R) -1 for those that go on, else the bytes
  // of the last token's text behind a stop string. May be null.
  std::function<void(const int32_t*, const int32_t*)> on_tokens;
};

template <class T>
struct GenerationResult {
  int32_t* tokens;           // (R, max_new_tokens), -1 past the end
  int32_t* lengths;          // (R)
  T* log_probabilities;      // (R, max_new_tokens), 0 past the end
  int32_t* top_tokens;       // (R, max_new_tokens, top_log_probabilities), -1 past the end
  T* top_log_probabilities;  // the same, 0 past the end
  Finish* finish;            // (R)
  int32_t* behind;           // (R): bytes of the last token's text behind a stop string
  T* states;                 // (R, state_row): before the sequence's last token was fed, 0 past its end
  ptrdiff_t state_row;       // the largest state_size of the N rows
};

// rows 0 .. N - 1 are the prompts and logits (N, V) what follows them; the rows are used up. Sequence r
// continues prompt r / n. One that ends gives its row up, so that it costs nothing.
template <class T>
void generate(StepRows<T>& rows, const T* logits, const GenerationRequest<T>& request,
              const GenerationResult<T>& result, const Poll& poll);

}  // namespace fusedlstm
