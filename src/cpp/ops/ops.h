// What a model needs beside the LSTM: output layer, embedding, losses, optimisers.
// R rows, I inputs, O outputs, V classes, E embedding size.
#pragma once

#include <cstdint>

#include "runtime/cpu.h"
#include "runtime/low_precision.h"
#include "runtime/memory.h"
#include "runtime/threads.h"

namespace fusedlstm {

// y = x W^T + b, laid out for the kernels; immutable.
template <class T>
struct PackedLinear {
  ptrdiff_t inputs, outputs;
  const Level* level;
  Compute compute;
  Buffer<T> forward;                    // panels (I, O)
  Buffer<T> backward;                   // panels (O, I)
  LowMatrix low_forward, low_backward;  // instead of these two in low precision; int8 has no backward
  Buffer<T> bias;                       // (O), zeros without bias, and up to whole panels

  const Kernels<T>& kernels() const { return kernels_of<T>(*level); }
  size_t bytes() const {
    return forward.bytes() + backward.bytes() + low_forward.bytes() + low_backward.bytes() + bias.bytes();
  }
};

// weight (O, I); bias (O) or null. Low precision takes float32.
template <class T>
PackedLinear<T> pack_linear(ptrdiff_t outputs, ptrdiff_t inputs, const T* weight, const T* bias,
                            Compute compute = Compute::kFull);

// A thread's share of y (R, O) = x W^T + b: x has its rows x_row apart; in low precision it is low_x, which
// round_for_share makes of x. That waits for all threads.
template <class T>
void round_for_share(Team& team, const PackedLinear<T>& w, ptrdiff_t R, const T* x, ptrdiff_t x_row,
                     LowRows& low_x);
template <class T>
void linear_share(Team& team, const PackedLinear<T>& w, ptrdiff_t R, const T* x, ptrdiff_t x_row,
                  const LowRows& low_x, T* y, ptrdiff_t y_row);

// x (R, I) -> y (R, O)
template <class T>
void linear_forward(const PackedLinear<T>& w, ptrdiff_t R, const T* x, T* y, const Poll& poll);
// dx (R, I) assigned; d_weight (O, I) and d_bias (O) added to; each may be null.
template <class T>
void linear_backward(const PackedLinear<T>& w, ptrdiff_t R, const T* x, const T* dy, T* dx, T* d_weight,
                     T* d_bias, const Poll& poll);

// weight (V, E), ids (R) in 0 .. V - 1.
template <class T>
void embedding_forward(ptrdiff_t R, ptrdiff_t E, const int32_t* ids, const T* weight, T* y);
template <class T>
void embedding_backward(ptrdiff_t R, ptrdiff_t E, const int32_t* ids, const T* dy, T* d_weight);

// y = x * keep / (1 - rate), (R, C); the mask is keyed by (seed, stream, row, column).
template <class T>
void dropout(ptrdiff_t R, ptrdiff_t C, T rate, uint64_t seed, uint32_t stream, const T* x, T* y);

struct LossSum {
  double nll;       // sum of -log p(target), or of -sum_j q_j log p_j, over counted rows
  int64_t counted;  // rows whose target is not ignore_index
};

// softmax cross-entropy of x W^T + b against targets (R) in 0 .. V - 1 or ignore_index, made a chunk of rows
// at a time. Gradients are those of scale * (sum of nll): dx (R, I) assigned, the others added to; each may
// be null. With label_smoothing epsilon the target's distribution is q = (1 - epsilon) one hot + epsilon / V.
template <class T>
LossSum linear_cross_entropy(const PackedLinear<T>& w, ptrdiff_t R, const T* x, const int32_t* targets,
                             int32_t ignore_index, T scale, T* dx, T* d_weight, T* d_bias, const Poll& poll,
                             T label_smoothing = 0);
// The same of given logits (R, V); d_logits assigned, may be null.
template <class T>
LossSum cross_entropy(ptrdiff_t R, ptrdiff_t V, const T* logits, const int32_t* targets, int32_t ignore_index,
                      T scale, T* d_logits, const Poll& poll, T label_smoothing = 0);
// mean (y - target)^2 over n elements; dy assigned, may be null.
template <class T>
double mean_squared_error(ptrdiff_t n, const T* y, const T* target, T* dy);

template <class T>
double gradient_norm(ptrdiff_t n, const T* gradients);
template <class T>
void zero_gradients(ptrdiff_t n, T* gradients);
template <class T>
void sgd_step(ptrdiff_t n, const SgdStep<T>& step, const T* gradients, T* velocity, T* parameters);
template <class T>
void adam_step(ptrdiff_t n, const AdamStep<T>& step, const T* gradients, T* m, T* v, T* parameters);

}  // namespace fusedlstm
