// A decoder with attention for the generation loops: embedding, LSTM of one direction, attention over the
// memory of each source, output layer; the equations are those of decode/attention_training.h.
// V token ids, E embedding size, F values fed back, S longest source, M memory size, L layers, H hidden
// units.
#pragma once

#include <memory>
#include <vector>

#include "decode/layer_rows.h"
#include "decode/step_model.h"
#include "ops/attention.h"

namespace fusedlstm {

template <class T>
class AttentionDecoder {
 public:
  // embedding (V, E). The LSTM has one direction and E + F inputs, the output layer O inputs and V outputs.
  AttentionDecoder(std::shared_ptr<const PackedWeights<T>> lstm,
                   std::shared_ptr<const PackedAttention<T>> attention, bool feeding, const T* embedding,
                   std::shared_ptr<const PackedLinear<T>> output);

  const PackedWeights<T>& lstm() const { return *lstm_; }
  const PackedAttention<T>& attention() const { return *attention_; }
  const PackedLinear<T>& output() const { return *output_; }
  const LstmShape& shape() const { return lstm_->shape; }
  ptrdiff_t vocabulary() const { return output_->outputs; }
  bool feeding() const { return feeding_; }
  ptrdiff_t fed() const { return fed_; }  // F
  // With bfloat16, a sum can be gone on with between blocks of x only: so many last elements of an embedding
  // are multiplied with what is fed back.
  ptrdiff_t late() const { return late_; }
  const T* late_elements(int32_t token) const { return late_elements_.data() + token * late_; }
  // The first layer's W x + b of the embedding of each token, without its late elements, and W of the rest:
  // x (rows, late + F).
  FirstInput<T> first_input(const int32_t* tokens, const T* x) const {
    return {table_.data(), tokens, late_ + fed_, x, fed_panels_.data(), &low_fed_};
  }
  size_t bytes() const {
    return lstm_->bytes() + output_->bytes() + table_.bytes() + fed_panels_.bytes() + low_fed_.bytes() +
           late_elements_.bytes();
  }

 private:
  void make_low_table(const T* embedding);

  std::shared_ptr<const PackedWeights<T>> lstm_;
  std::shared_ptr<const PackedAttention<T>> attention_;
  std::shared_ptr<const PackedLinear<T>> output_;
  bool feeding_;
  ptrdiff_t fed_, late_;
  Buffer<T> table_;          // (V, 4 H_pad)
  Buffer<T> fed_panels_;     // (F, 4 H_pad)
  LowMatrix low_fed_;        // (late + F, 4 H_pad) instead, in low precision
  Buffer<T> late_elements_;  // (V, late)
};

// Values of each row that is fed back, of [e_t ; fed].
template <class T>
ptrdiff_t fed_columns(const PackedAttention<T>& attention, bool feeding) {
  if (feeding) return attention.O;
  return attention.kind == Attention::kBahdanau ? attention.M : 0;
}

// One of the sources whose memory was prepared together; no memory without attention.
template <class T>
struct Source {
  std::shared_ptr<const SourceMemory<T>> memory;
  ptrdiff_t n = 0;

  ptrdiff_t length() const { return memory->length(n); }
  bool operator==(const Source&) const = default;
};

// A row's state: h (L, H), c (L, H), a_{t-1} (O) with feeding, and the coverage (S_n) of its source where
// there is one. The decoder must outlive the rows.
template <class T>
class AttentionRows final : public StepRows<T> {
 public:
  // Rows 0 .. N - 1 are the N sources before their first token. memory (N, S, M) and lengths (N), each in
  // 1 .. S, are read here only, and null without attention; initial (L, N, H). capacity >= N.
  AttentionRows(const AttentionDecoder<T>& model, ptrdiff_t capacity, ptrdiff_t N, ptrdiff_t S,
                const T* memory, const int32_t* lengths, const LstmStates<T>& initial, const Poll& poll);

  // For rows that come and go, the first free row: it looks at this source from now on, and its state is to
  // be loaded. One thread calls.
  void attach(ptrdiff_t row, const Source<T>& source);
  const Source<T>& source(ptrdiff_t row) const { return sources_[static_cast<size_t>(row)]; }

  // Attention weights (S) of a row's last step, 0 past its source's length.
  const T* weights(ptrdiff_t row) const { return weights_.data() + row * S_; }
  // What the output layer read then (O).
  const T* output(ptrdiff_t row) const {
    const ptrdiff_t O = model_.attention().O;
    return model_.attention().none() ? layers_.h() + row * layers_.pitch() : outputs_.data() + row * O;
  }

  const Kernels<T>& kernels() const override { return model_.lstm().kernels(); }
  ptrdiff_t vocabulary() const override { return model_.vocabulary(); }
  ptrdiff_t capacity() const override { return capacity_; }
  void step_share(Team& team, ptrdiff_t count, const int32_t* tokens, T* logits) override;
  void gather(ptrdiff_t count, const int32_t* from) override;
  ptrdiff_t state_size(ptrdiff_t row) const override;
  void save(ptrdiff_t row, T* state) const override;
  void load(ptrdiff_t row, const T* state) override;

 private:
  bool bahdanau() const { return model_.attention().kind == Attention::kBahdanau; }
  void attend_share(Team& team, ptrdiff_t count);
  void make_room(ptrdiff_t S);
  ptrdiff_t first_columns() const { return model_.late() + model_.fed(); }
  T* fed(ptrdiff_t row) { return first_.data() + row * first_columns() + model_.late(); }
  const T* fed(ptrdiff_t row) const { return first_.data() + row * first_columns() + model_.late(); }

  const AttentionDecoder<T>& model_;
  ptrdiff_t capacity_, S_ = 0, H_;
  LayerRows<T> layers_;
  std::vector<Source<T>> sources_, sources_next_;  // by row; free rows have none
  Buffer<T> first_;                                // (capacity, late + F): what the first layer's table lacks
  Buffer<T> coverage_;                             // (capacity, S): before the next step
  Buffer<T> moved_;                                // of what gather moves
  Buffer<T> queries_;                              // (capacity, A): of the additive kinds
  Buffer<T> weights_;                              // (capacity, S)
  Buffer<T> joined_;                               // (capacity, M + H): [context ; h]
  Buffer<T> outputs_;                              // (capacity, O)
  LowRows low_output_;                             // what the output layer takes in low precision
};

}  // namespace fusedlstm
