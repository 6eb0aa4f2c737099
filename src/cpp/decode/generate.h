// The generation loop over any model: first logits in, tokens out, in one call.
// N sequences, V token ids.
#pragma once

#include <functional>

#include "decode/sampler.h"
#include "decode/step_model.h"

namespace fusedlstm {

template <class T>
struct GenerationRequest {
  ptrdiff_t N;
  Sampling sampling;
  const uint64_t* seeds;  // (N)
  int32_t stop_token;     // emitted, then its sequence ends; -1: none
  ptrdiff_t max_new_tokens;
  std::function<void(const int32_t*)>
      on_tokens;  // (N) ids of one step, -1 for finished sequences; may be empty
};

template <class T>
struct GenerationResult {
  int32_t* tokens;                                   // (N, max_new_tokens), -1 past the end
  int32_t* lengths;                                  // (N)
  T* log_probability;                                // (N, max_new_tokens), 0 past the end
  std::function<void(ptrdiff_t, ptrdiff_t)> on_end;  // (b, row): sequence b ends; its last token was not fed
};

// rows 0 .. N - 1 are the sequences and logits (N, V) what follows them; both are used up. A sequence that
// ends gives its row to another one, so that ended sequences cost nothing.
template <class T>
void generate(StepRows<T>& rows, T* logits, const GenerationRequest<T>& request,
              const GenerationResult<T>& result, const Poll& poll);

}  // namespace fusedlstm
