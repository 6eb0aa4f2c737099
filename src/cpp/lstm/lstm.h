// LSTM over whole sequences: forward for inference, forward with a tape, backward.
// N sequences, T steps, I inputs, H hidden units, L layers, D directions, V token ids.
#pragma once

#include <atomic>
#include <memory>

#include "lstm/packing.h"
#include "lstm/tape.h"
#include "runtime/threads.h"

namespace fusedlstm {

// Dense rows, or token ids and the embedding they look up.
template <class T>
struct LstmInput {
  const T* x = nullptr;             // (N, T, I)
  const int32_t* tokens = nullptr;  // (N, T), each in 0 .. V - 1
  const T* embedding = nullptr;     // (V, I)
  ptrdiff_t vocabulary = 0;         // V
  // Set to true if NaN or an infinity is among the steps of x that are read; null: nobody wants to know.
  std::atomic<bool>* not_finite = nullptr;
};

template <class T>
struct LstmStates {
  const T* h0 = nullptr;  // (L D, N, H); null means 0
  const T* c0 = nullptr;
};

template <class T>
struct LstmOutputs {
  T* y;    // (N, T, D H), 0 past a sequence's length; null: not wanted
  T* h_n;  // (L D, N, H)
  T* c_n;
};

// lengths: N values in 0 .. T, or null.
template <class T>
void lstm_forward(const PackedWeights<T>& w, ptrdiff_t N, ptrdiff_t time, const int32_t* lengths,
                  const LstmInput<T>& input, const LstmStates<T>& initial, const LstmOutputs<T>& out,
                  const Poll& poll);

// The same with dropout between layers, keeping what backward needs: mode is kFull, kHalf or kLean.
template <class T>
std::unique_ptr<Tape<T>> lstm_forward_tape(const PackedWeights<T>& w, ptrdiff_t N, ptrdiff_t time,
                                           const int32_t* lengths, const LstmInput<T>& input,
                                           const LstmStates<T>& initial, T dropout, uint64_t seed,
                                           TapeMode mode, const LstmOutputs<T>& out, const Poll& poll);

template <class T>
struct LstmGradients {
  T* parameters;   // flat, += ; laid out as weight_table says
  T* d_embedding;  // (V, I), += ; null for dense input
  T* dx;           // (N, T, I), assigned; may be null
  T* dh0;          // (L D, N, H), assigned
  T* dc0;
};

// Consumes the tape. dy (N, T, D H), dh_n and dc_n (L D, N, H) may be null: 0.
template <class T>
void lstm_backward(const PackedWeights<T>& w, Tape<T>& tape, const T* dy, const T* dh_n, const T* dc_n,
                   const LstmGradients<T>& gradients, const Poll& poll);

// One step of a single layer: x (N, I), h and c (N, H) -> h_next, c_next (N, H), gates (N, 4, H) after
// activation.
template <class T>
void lstm_cell_forward(const PackedWeights<T>& w, ptrdiff_t N, const T* x, const T* h, const T* c, T* h_next,
                       T* c_next, T* gates);

// dc may be null. Assigned: dx (N, I), dh_prev and dc_prev (N, H); parameters (flat, may be null) are added
// to.
template <class T>
struct CellGradients {
  T *dx, *dh_prev, *dc_prev, *parameters;
};
template <class T>
void lstm_cell_backward(const PackedWeights<T>& w, ptrdiff_t N, const T* x, const T* h, const T* c,
                        const T* c_next, const T* gates, const T* dh, const T* dc,
                        const CellGradients<T>& out);

}  // namespace fusedlstm
