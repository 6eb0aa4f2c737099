// A decoder with attention over all target steps in one call, forward with a tape and backward.
// N sequences, T steps, S longest source, E inputs (rows of the embedding), M memory size, H hidden units,
// L layers, A size of keys and queries, O outputs, V token ids; F columns are fed back; P packed rows.
//
//   Luong (dot, general, concat)                     Bahdanau
//   x_t = [e_t ; a_{t-1}], without feeding e_t       c_t = attention(q = h_{t-1})
//   h_t = LSTM(x_t)                                  x_t = [e_t ; c_t]
//   c_t = attention(q = h_t)                         h_t = LSTM(x_t)
//   a_t = tanh(W_o [c_t ; h_t])                      a_t = tanh(W_o [c_t ; h_t])
//
// h is that of the last layer, a_0 and the coverage before the first step are 0. Without attention a_t = h_t.
// With scheduled sampling e_t may be the embedding of an own token, drawn from softmax(W_v a_{t-1} + b_v).
#pragma once

#include <memory>
#include <vector>

#include "lstm/stepwise.h"
#include "ops/attention.h"

namespace fusedlstm {

// The own token of step t - 1, instead of the one given, with a probability for each row and step.
template <class T>
struct ScheduledSampling {
  const T* embedding = nullptr;  // (V, E)
  std::shared_ptr<const PackedLinear<T>> output;
  const double* probability = nullptr;  // (N, T); step 0 always takes the token given
  bool sample = false;                  // draw from the softmax, or take the largest logit
};
// Draws of row n and step t: Philox (seed; stream kScheduleStream, row n, step t), words 0 and 1 for whether,
// 2 and 3 for which.
constexpr uint32_t kScheduleStream = 0x73636864;

template <class T>
struct AttentionBatch {
  ptrdiff_t N, time, S;
  const int32_t* lengths;         // (N) in 0 .. T, or null
  const T* x;                     // (N, T, E)
  const T* memory;                // (N, S, M)
  const int32_t* memory_lengths;  // (N) in 1 .. S
  LstmStates<T> initial;          // (L, N, H)
  bool feeding;                   // of a_t; Bahdanau's context is fed without
  T dropout;                      // between layers
  uint64_t seed;
  ScheduledSampling<T> scheduled;  // embedding null: none
};

template <class T>
struct AttentionOutputs {
  T* y;             // (N, T, O): a_t, 0 past the length
  T *h_n, *c_n;     // (L, N, H)
  int32_t* tokens;  // (N, T): own token fed at a step, else -1; null without scheduled sampling
};

template <class T>
struct AttentionGradients {
  // Added to, in the shapes of the weights; null where there is no such weight.
  T *lstm, *output, *key, *query, *v, *coverage;
  // Assigned: dx (N, T, E), d_memory (N, S, M), dh0 and dc0 (L, N, H)
  T *dx, *d_memory, *dh0, *dc0;
};

template <class T>
class AttentionTape {
 public:
  // Runs forward. What the batch points at is read during this call only.
  AttentionTape(std::shared_ptr<const PackedWeights<T>> lstm,
                std::shared_ptr<const PackedAttention<T>> attention, const AttentionBatch<T>& batch,
                const AttentionOutputs<T>& out, const Poll& poll);
  // Once. dy (N, T, O); dh_n, dc_n (L, N, H) or null; memory: that of forward.
  void backward(const T* dy, const T* dh_n, const T* dc_n, const T* memory,
                const AttentionGradients<T>& gradients, const Poll& poll);

  const PackedWeights<T>& lstm() const { return *lstm_; }
  const PackedAttention<T>& attention() const { return *attention_; }
  const Rows& rows() const { return rows_; }
  ptrdiff_t inputs() const { return E_; }
  ptrdiff_t longest_source() const { return S_; }
  // (N, T, S): 0 past the lengths
  void copy_weights(T* weights) const;
  size_t bytes() const;

 private:
  void forward(const AttentionBatch<T>& batch, const AttentionOutputs<T>& out, const Poll& poll);
  void plan_own_tokens(const AttentionBatch<T>& batch);
  void own_tokens_share(Team& team, const AttentionBatch<T>& batch, ptrdiff_t s, int32_t* tokens);
  void queries_share(Team& team, ptrdiff_t s);
  void attend_share(const Team& team, ptrdiff_t s, bool to_input);
  Work attend_work(const Team& team, ptrdiff_t s, bool backward) const;
  void outputs_share(Team& team, ptrdiff_t first, ptrdiff_t count);
  void attend_backward_share(const Team& team, ptrdiff_t s);
  void output_gradients_share(Team& team, ptrdiff_t first, ptrdiff_t count);
  void weight_gradients_share(Team& team, const T* memory, const AttentionGradients<T>& gradients);

  bool bahdanau() const { return attention_->kind == Attention::kBahdanau; }
  MatrixRows<T> query_rows(ptrdiff_t s) const { return bahdanau() ? steps_.h_before(s) : steps_.h(s); }

  std::shared_ptr<const PackedWeights<T>> lstm_;
  std::shared_ptr<const PackedAttention<T>> attention_;
  const Kernels<T>& k_;
  Rows rows_;
  ptrdiff_t E_, F_, M_, H_, A_, O_, S_, P_;
  bool feeding_, scheduled_;
  int threads_;
  Stepwise<T> steps_;
  SourceMemory<T> memory_;
  ptrdiff_t x_pitch_, joined_pitch_;
  Buffer<T> x_;                            // (P, E + F)
  Buffer<T> joined_;                       // (P, M + H): [context ; h]
  Buffer<T> outputs_;                      // (P, O)
  Buffer<T> weights_;                      // (P, S)
  Buffer<T> coverage_;                     // (P, S): before each step
  Buffer<T> queries_;                      // (P, A): of the additive kinds
  std::vector<std::vector<int32_t>> own_;  // by step: slots that are fed their own token
  Buffer<T> own_rows_, logits_;            // of the slots of one step
  LowRows low_own_rows_;                   // the same rows, where the output layer takes low precision
  // Backward
  Buffer<T> dx_;                     // (P, E + F)
  Buffer<T> d_outputs_;              // (P, O): of a_t, then of what tanh is taken of
  Buffer<T> d_joined_;               // (P, M + H)
  Buffer<T> d_scores_;               // (P, S)
  Buffer<T> d_queries_, d_v_, d_w_;  // (P, A)
  Buffer<T> d_key_panels_;           // of the additive kinds: panels (A, S_n) of each source
  Buffer<T> d_keys_;                 // (N, S, A)
  Buffer<T> d_coverage_;             // (N, S), by slot
  Buffer<T> d_h_;                    // (N, H), by slot: from the query of the step after
  ReductionOrder order_;
  std::vector<Buffer<T>> scratch_;  // by thread
};

}  // namespace fusedlstm
