#include "ops/attention.h"

#include <algorithm>

namespace fusedlstm {

template <class T>
SourceMemory<T>::SourceMemory(const PackedAttention<T>& attention, ptrdiff_t N, ptrdiff_t S, const T* memory,
                              const int32_t* lengths, bool backward, const Poll& poll)
    : S_(S), M_(attention.M), A_(attention.A), length_(lengths, lengths + N), start_{0} {
  const Kernels<T>& k = attention.kernels();
  const auto whole = [&](ptrdiff_t n) { return (n + k.panel - 1) / k.panel * k.panel; };
  M_padded_ = whole(M_);
  A_padded_ = whole(A_);
  for (const int32_t length : length_) {
    padded_.push_back(whole(length));
    start_.push_back(start_.back() + padded_.back());
  }
  const bool dot = attention.kind == Attention::kDot;
  scores_ = Buffer<T>(start_.back() * A_);
  contexts_ = Buffer<T>(N * S * M_padded_);
  memory_transposed_ = Buffer<T>(backward && !dot ? start_.back() * M_ : 0);
  keys_ = Buffer<T>(backward && !attention.additive() && !dot ? N * S * A_padded_ : 0);
  const double work = 2.0 * static_cast<double>(N * S * M_) * static_cast<double>(A_);
  run_job(threads_for(work), poll, [&](Team& team) {
    Buffer<T> made(dot ? 0 : S * A_);
    for (ptrdiff_t n = team.thread(); n < N; n += team.threads()) {
      const T* const m = memory + n * S * M_;
      const T* key = m;
      if (!dot) {
        gemm_in_pieces<T>(k,
                          {.M = length(n),
                           .N = A_,
                           .K = M_,
                           .a = m,
                           .a_row = M_,
                           .b = attention.key.forward.data(),
                           .init = nullptr,
                           .init_row = 0,
                           .c = made.data(),
                           .c_row = A_},
                          team);
        key = made.data();
      }
      k.pack(A_, length(n), key, A_, SourceBy::kColumns, {}, scores_.data() + key_panels_offset(n));
      k.pack(length(n), M_, m, M_, SourceBy::kRows, {}, contexts_.data() + n * S * M_padded_);
      if (memory_transposed_.size())
        k.pack(M_, length(n), m, M_, SourceBy::kColumns, {},
               memory_transposed_.data() + start_[static_cast<size_t>(n)] * M_);
      if (keys_.size()) k.pack(length(n), A_, key, A_, SourceBy::kRows, {}, keys_.data() + n * S * A_padded_);
    }
  });
}

template <class T>
void SourceMemory<T>::attend(const PackedAttention<T>& attention, ptrdiff_t n, ptrdiff_t rows, const T* query,
                             ptrdiff_t query_row, const T* coverage, ptrdiff_t coverage_row, T* weights,
                             ptrdiff_t weights_row, T* context, ptrdiff_t context_row) const {
  const Kernels<T>& k = attention.kernels();
  const T* const keys = scores_.data() + key_panels_offset(n);
  if (attention.additive()) {
    for (ptrdiff_t r = 0; r < rows; ++r)
      k.additive_scores({.A = A_,
                         .S = length(n),
                         .keys = keys,
                         .query = query + r * query_row,
                         .v = attention.v.data(),
                         .w = attention.covers() ? attention.coverage.data() : nullptr,
                         .coverage = attention.covers() ? coverage + r * coverage_row : nullptr,
                         .scores = weights + r * weights_row});
  } else {
    k.gemm({.M = rows,
            .N = length(n),
            .K = A_,
            .a = query,
            .a_row = query_row,
            .b = keys,
            .init = nullptr,
            .init_row = 0,
            .c = weights,
            .c_row = weights_row});
  }
  for (ptrdiff_t r = 0; r < rows; ++r) {
    T* const row = weights + r * weights_row;
    T largest;
    k.softmax_row(length(n), row, T(1), row, &largest);
  }
  k.gemm({.M = rows,
          .N = M_,
          .K = length(n),
          .a = weights,
          .a_row = weights_row,
          .b = contexts_.data() + n * S_ * M_padded_,
          .init = nullptr,
          .init_row = 0,
          .c = context,
          .c_row = context_row});
}

template <class T>
void SourceMemory<T>::attend_backward(const PackedAttention<T>& attention, ptrdiff_t n,
                                      const RowBackward& row) const {
  const Kernels<T>& k = attention.kernels();
  const ptrdiff_t S = length(n);
  const T* const keys = scores_.data() + key_panels_offset(n);
  T* const d = row.d_scores;
  k.gemm({.M = 1,
          .N = S,
          .K = M_,
          .a = row.d_context,
          .a_row = M_,
          .b = memory_transposed_.size() ? memory_transposed_.data() + start_[static_cast<size_t>(n)] * M_
                                         : keys,
          .init = row.d_coverage,  // coverage after = coverage before + weights
          .init_row = 0,
          .c = d,
          .c_row = S});
  T mean = 0;
  for (ptrdiff_t s = 0; s < S; ++s) mean += row.weights[s] * d[s];
  for (ptrdiff_t s = 0; s < S; ++s) d[s] = row.weights[s] * (d[s] - mean);
  if (attention.additive()) {
    k.additive_backward({.forward = {.A = A_,
                                     .S = S,
                                     .keys = keys,
                                     .query = row.query,
                                     .v = attention.v.data(),
                                     .w = attention.covers() ? attention.coverage.data() : nullptr,
                                     .coverage = row.coverage,
                                     .scores = nullptr},
                         .d_scores = d,
                         .d_keys = row.d_keys,
                         .d_query = row.d_query,
                         .d_v = row.d_v,
                         .d_w = row.d_w,
                         .d_coverage = row.d_coverage});
    return;
  }
  k.gemm({.M = 1,
          .N = A_,
          .K = S,
          .a = d,
          .a_row = S,
          .b = keys_.size() ? keys_.data() + n * S_ * A_padded_ : contexts_.data() + n * S_ * M_padded_,
          .init = nullptr,
          .init_row = 0,
          .c = row.d_query,
          .c_row = A_});
}

template class SourceMemory<float>;
template class SourceMemory<double>;

}  // namespace fusedlstm
