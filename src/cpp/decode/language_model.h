// A language model for the generation loop: embedding, LSTM of one direction, output layer.
// N sequences, V token ids, I embedding size, L layers, H hidden units.
#pragma once

#include <memory>

#include "decode/layer_rows.h"
#include "decode/step_model.h"
#include "ops/ops.h"

namespace fusedlstm {

// What steps need, prepared once: the input product of the first layer for every token.
template <class T>
class LanguageModelDecoder {
 public:
  // embedding (V, I); the LSTM has one direction and the output layer V outputs.
  LanguageModelDecoder(std::shared_ptr<const PackedWeights<T>> lstm, const T* embedding,
                       std::shared_ptr<const PackedLinear<T>> output);

  const PackedWeights<T>& lstm() const { return *lstm_; }
  const PackedLinear<T>& output() const { return *output_; }
  const LstmShape& shape() const { return lstm_->shape; }
  ptrdiff_t vocabulary() const { return output_->outputs; }
  size_t bytes() const { return lstm_->bytes() + output_->bytes() + table_.bytes() + embedding_.bytes(); }

  const T* embedding() const { return embedding_.data(); }
  const T* table() const { return table_.data(); }

 private:
  std::shared_ptr<const PackedWeights<T>> lstm_;
  std::shared_ptr<const PackedLinear<T>> output_;
  Buffer<T> embedding_;  // (V, I)
  Buffer<T> table_;      // (V, 4 H_pad): the first layer's W x + b of each token
};

// A row's state is h (L, H), then c (L, H). The decoder must outlive the rows.
template <class T>
class LanguageModelRows final : public StepRows<T> {
 public:
  LanguageModelRows(const LanguageModelDecoder<T>& model, ptrdiff_t capacity);

  // Rows first .. first + N - 1 become those of N prompts, as one ragged batch; logits (N, V) of what
  // follows. prompts: one after the other, lengths (N) each at least 1; h0, c0 (L, N, H) or null.
  void prefill(ptrdiff_t first, ptrdiff_t N, const int32_t* prompts, const int32_t* lengths,
               const LstmStates<T>& initial, T* logits, const Poll& poll);

  const Kernels<T>& kernels() const override { return model_.lstm().kernels(); }
  ptrdiff_t vocabulary() const override { return model_.vocabulary(); }
  ptrdiff_t capacity() const override { return capacity_; }
  void step_share(Team& team, ptrdiff_t count, const int32_t* tokens, T* logits) override;
  void gather(ptrdiff_t count, const int32_t* from) override { layers_.gather(count, from); }
  ptrdiff_t state_size(ptrdiff_t) const override { return layers_.state_size(); }
  void save(ptrdiff_t row, T* state) const override { layers_.save(row, state); }
  void load(ptrdiff_t row, const T* state) override { layers_.load(row, state); }

 private:
  const LanguageModelDecoder<T>& model_;
  ptrdiff_t capacity_;
  LayerRows<T> layers_;
  LowRows low_output_;  // what the output layer takes in low precision
};

}  // namespace fusedlstm
