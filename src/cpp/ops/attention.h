// Attention of a decoder over the memory of its source.
// N sources, S their longest, M memory size, H hidden units, A size of keys and queries, O outputs.
//
//   score_s = q . k_s                                    dot (k = m, q = h), general (k = W_k m, q = h)
//   score_s = v . tanh(k_s + q + cov_s w)                concat, bahdanau (k = W_k m, q = W_q h)
//   weights = softmax(score) over s < length             context = sum_s weights_s m_s
//   output  = tanh(W_o [context; h])                     the attentional state of Luong, Pham, Manning 2015
//
// Every score is one chain over A, every context one over s: whatever rows are made together.
#pragma once

#include <vector>

#include "ops/ops.h"
#include "runtime/products.h"
#include "runtime/profiler.h"

namespace fusedlstm {

enum class Attention { kNone, kDot, kGeneral, kConcat, kBahdanau };

template <class T>
struct PackedAttention {
  Attention kind = Attention::kNone;
  ptrdiff_t M = 0, H = 0, A = 0, O = 0;
  const Level* level = nullptr;
  PackedLinear<T> output{};  // (O, M + H)
  PackedLinear<T> key{};     // (A, M): general, concat, bahdanau
  PackedLinear<T> query{};   // (A, H): concat, bahdanau
  Buffer<T> v;               // (A): concat, bahdanau
  Buffer<T> coverage;        // (A): w, where there is coverage

  bool none() const { return kind == Attention::kNone; }
  bool additive() const { return kind == Attention::kConcat || kind == Attention::kBahdanau; }
  bool covers() const { return coverage.size() > 0; }
  const Kernels<T>& kernels() const { return kernels_of<T>(*level); }
};

// The memory of a batch of sources in the layouts that steps read, made once.
template <class T>
class SourceMemory {
 public:
  SourceMemory() = default;
  // memory (N, S, M), which backward reads again; lengths (N), each in 1 .. S.
  SourceMemory(const PackedAttention<T>& attention, ptrdiff_t N, ptrdiff_t S, const T* memory,
               const int32_t* lengths, bool backward, const Poll& poll);

  ptrdiff_t sources() const { return static_cast<ptrdiff_t>(length_.size()); }
  ptrdiff_t longest() const { return S_; }
  ptrdiff_t length(ptrdiff_t n) const { return length_[static_cast<size_t>(n)]; }
  size_t bytes() const {
    return scores_.bytes() + contexts_.bytes() + memory_transposed_.bytes() + keys_.bytes();
  }

  // `rows` rows of source n, by one thread: query (rows, A) -> weights (rows, S_n), context (rows, M).
  // coverage (rows, S_n) is read where there is coverage.
  void attend(const PackedAttention<T>& attention, ptrdiff_t n, ptrdiff_t rows, const T* query,
              ptrdiff_t query_row, const T* coverage, ptrdiff_t coverage_row, T* weights,
              ptrdiff_t weights_row, T* context, ptrdiff_t context_row) const;

  // One row of source n from the derivative of its context. Assigned: d_scores (S_n), d_query (A), and of
  // the additive kinds d_v, d_w (A). Added to: d_keys, panels (A, S_n), of the additive kinds. d_coverage
  // (S_n), of the coverage after the step, becomes that of the one before it.
  struct RowBackward {
    const T *query, *coverage, *weights, *d_context;
    T *d_scores, *d_query, *d_v, *d_w, *d_keys, *d_coverage;
  };
  void attend_backward(const PackedAttention<T>& attention, ptrdiff_t n, const RowBackward& row) const;

  // What one call of these does.
  Work attend_work(const PackedAttention<T>& attention, ptrdiff_t n, ptrdiff_t rows, bool backward) const {
    const double S = static_cast<double>(length(n)), R = static_cast<double>(rows);
    const double a_key = !attention.additive() ? 2 : backward ? 30 : 24;  // tanh counts 20
    const double A = static_cast<double>(attention.A), M = static_cast<double>(attention.M);
    return {R * S * (a_key * A + 2 * M), (S * (A + M) + R * (S + A + M)) * static_cast<double>(sizeof(T))};
  }

  ptrdiff_t key_panels_size(ptrdiff_t n) const { return padded_[static_cast<size_t>(n)] * A_; }
  ptrdiff_t key_panels_offset(ptrdiff_t n) const { return start_[static_cast<size_t>(n)] * A_; }
  ptrdiff_t key_panels_total() const { return start_.empty() ? 0 : start_.back() * A_; }

 private:
  ptrdiff_t S_ = 0, M_ = 0, A_ = 0, M_padded_ = 0, A_padded_ = 0;
  std::vector<int32_t> length_;
  std::vector<ptrdiff_t> padded_, start_;  // lengths in whole panels, and their sums
  Buffer<T> scores_;                       // panels (A, S_n) of each source: keys
  Buffer<T> contexts_;                     // panels (S_n, M)
  Buffer<T> memory_transposed_;            // panels (M, S_n), for backward; with dot those of the scores
  Buffer<T> keys_;                         // panels (S_n, A), for backward of dot and general
};

}  // namespace fusedlstm
