// The generation loop of a language model: prompt in, tokens out, in one call.
// N sequences, V token ids, L layers (one direction), H hidden units.
#pragma once

#include <functional>
#include <memory>

#include "decode/sampler.h"
#include "lstm/low_precision.h"
#include "lstm/lstm.h"
#include "ops/ops.h"

namespace fusedlstm {

// What the loop needs, prepared once: the input product of the first layer for every token.
template <class T>
class LanguageModelDecoder {
 public:
  // embedding (V, I); the LSTM has one direction and the output layer V outputs.
  LanguageModelDecoder(std::shared_ptr<const PackedWeights<T>> lstm, const T* embedding,
                       std::shared_ptr<const PackedLinear<T>> output);

  const PackedWeights<T>& lstm() const { return *lstm_; }
  const LstmShape& shape() const { return lstm_->shape; }
  ptrdiff_t vocabulary() const { return output_->outputs; }
  size_t bytes() const { return lstm_->bytes() + output_->bytes() + table_.bytes() + embedding_.bytes(); }

  struct Request {
    ptrdiff_t N;
    const int32_t* prompts;         // the N prompts one after the other
    const int32_t* prompt_lengths;  // each at least 1
    const T *h0, *c0;               // (L, N, H) or null
    Sampling sampling;
    const uint64_t* seeds;  // (N)
    int32_t stop_token;     // emitted, then its sequence ends; -1: none
    ptrdiff_t max_new_tokens;
    std::function<void(const int32_t*)>
        on_tokens;  // (N) ids of one step, -1 for finished sequences; may be empty
  };
  struct Result {
    int32_t* tokens;     // (N, max_new_tokens), -1 past the end
    int32_t* lengths;    // (N)
    T* log_probability;  // (N, max_new_tokens), 0 past the end
    T *h, *c;            // (L, N, H): states before each sequence's last token was fed
  };
  void generate(const Request& request, const Result& result, const Poll& poll) const;

 private:
  struct Live;  // the sequences still running
  bool low() const { return lstm_->compute != Compute::kFull; }
  void input_share(Team& team, ptrdiff_t layer, ptrdiff_t M, MatrixRows<T> x, const LowRows& low_x,
                   T* out) const;
  void prefill(const Request& request, Live& live, const Poll& poll) const;
  void layers_share(Team& team, Live& live) const;

  std::shared_ptr<const PackedWeights<T>> lstm_;
  std::shared_ptr<const PackedLinear<T>> output_;
  Buffer<T> embedding_;  // (V, I)
  Buffer<T> table_;      // (V, 4 H_pad): embedding W_ih^T + b of layer 0
};

}  // namespace fusedlstm
