// An LSTM and an output layer in a loop: every output is the next input.
// N sequences, T steps, I inputs, L layers (one direction), H hidden units, O outputs, V token ids (then O =
// V).
//
//   h_s = LSTM(x_s)      z_s = W h_s + b      x_0 given; x_{s+1} = what feeds back:
//
//   kOutput   z_s                                real values, I = O; the gradient runs through it
//   kToken    E[k], k the token of largest z_s, or one drawn from softmax(z_s / temperature)
//   kSoft     softmax(z_s / temperature) E       the gradient runs through it
//
// or, with the teacher's probability, by row and step: the target of step s itself, or its row of E. Bengio,
// Vinyals, Jaitly, Shazeer, "Scheduled sampling for sequence prediction with recurrent neural networks",
// 2015.
#pragma once

#include "decode/language_model.h"

namespace fusedlstm {

enum class Feedback { kOutput, kToken, kSoft };

// A draw of row n at step s is Philox (seed; stream kFeedbackStream, row n, step s, block 0): the teacher's
// if word 0 is below 2^32 times its probability; words 1 and 2 choose a token as in decode/sampler.h.
constexpr uint32_t kFeedbackStream = 0x66656564;

template <class T>
struct OneToManyRequest {
  ptrdiff_t N, time;
  const int32_t* lengths;        // (N) in 0 .. T; null: T
  const T* first;                // (N, I): x_0
  LstmStates<T> initial;         // (L, N, H)
  const T* target_values;        // (N, T, O): mean squared error; null:
  const int32_t* target_tokens;  // (N, T) in 0 .. V - 1: mean cross-entropy
  const T* embedding;            // E (V, I), with target_tokens
  Feedback feedback;
  double teacher_probability;  // 1: never its own output
  T temperature;
  bool sample;  // kToken
  T dropout;    // between layers
  uint64_t seed;
};

// d_first (N, I), dh0 and dc0 (L, N, H) are assigned, the others added to.
template <class T>
struct OneToManyGradients {
  T* parameters;   // flat, of the LSTM
  T* d_weight;     // (O, H)
  T* d_bias;       // (O); may be null
  T* d_embedding;  // (V, I); null without embedding
  T *d_first, *dh0, *dc0;
};

// The mean loss over all steps within the lengths (and, of values, over O), and where wanted z as y (N, T,
// O), 0 past the lengths, and the gradients of that mean.
template <class T>
double one_to_many(const PackedWeights<T>& lstm, const PackedLinear<T>& output,
                   const OneToManyRequest<T>& request, T* y, const OneToManyGradients<T>* gradients,
                   const Poll& poll);

// Feedback kOutput without targets: y (N, steps, O), and the states after the last step.
template <class T>
void one_to_many_generate(const std::shared_ptr<const PackedWeights<T>>& lstm, const PackedLinear<T>& output,
                          ptrdiff_t N, ptrdiff_t steps, const T* first, const LstmStates<T>& initial, T* y,
                          T* h_n, T* c_n, const Poll& poll);

// Rows 0 .. N - 1 of a generation of tokens after the first input, first (N, I); logits (N, V) of what
// follows.
template <class T>
void one_to_many_begin(const LanguageModelDecoder<T>& model, ptrdiff_t N, const T* first,
                       const LstmStates<T>& initial, StepRows<T>& rows, T* logits, const Poll& poll);

}  // namespace fusedlstm
