#include "decode/attention_decoder.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "runtime/products.h"
#include "runtime/profiler.h"

namespace fusedlstm {

template <class T>
AttentionDecoder<T>::AttentionDecoder(std::shared_ptr<const PackedWeights<T>> lstm,
                                      std::shared_ptr<const PackedAttention<T>> attention, bool feeding,
                                      const T* embedding, std::shared_ptr<const PackedLinear<T>> output)
    : lstm_(std::move(lstm)),
      attention_(std::move(attention)),
      output_(std::move(output)),
      feeding_(feeding),
      fed_(fed_columns(*attention_, feeding)),
      late_(lstm_->compute == Compute::kBfloat16 && fed_ > 0 ? (lstm_->shape.input_size - fed_) % kLowBlock
                                                             : 0),
      table_(output_->outputs * 4 * lstm_->shape.hidden_padded()) {
  if (lstm_->compute != Compute::kFull) {
    make_low_table(embedding);
    return;
  }
  fed_panels_ = Buffer<T>(fed_ * 4 * lstm_->shape.hidden_padded());
  const PackedLayer<T>& first = lstm_->layers[0];
  const Kernels<T>& k = lstm_->kernels();
  const ptrdiff_t columns = first.bias.size(), embedded = first.inputs - fed_;
  for (ptrdiff_t column = 0; column < columns; column += k.panel)
    std::copy_n(first.input.data() + column * first.inputs + embedded * k.panel, fed_ * k.panel,
                fed_panels_.data() + column * fed_);
  run_job(0, nullptr, [&](Team& team) {
    gemm_share<T>(k,
                  {.M = vocabulary(),
                   .N = columns,
                   .K = embedded,
                   .a = embedding,
                   .a_row = embedded,
                   .b = first.input.data(),
                   .init = first.bias.data(),
                   .init_row = 0,
                   .c = table_.data(),
                   .c_row = columns,
                   .b_panel = first.inputs * k.panel},
                  team);
  });
}

template <class T>
void AttentionDecoder<T>::make_low_table(const T* embedding) {
  if constexpr (std::is_same_v<T, float>) {
    const PackedLayer<float>& first = lstm_->layers[0];
    const ptrdiff_t V = vocabulary(), columns = first.bias.size(), embedded = first.inputs - fed_,
                    early = embedded - late_;
    if (fed_ > 0) low_fed_ = low_elements(first.low_input, first.inputs, columns, early, first.inputs);
    late_elements_ = Buffer<float>(V * late_);
    for (ptrdiff_t token = 0; token < V; ++token) {
      std::copy_n(embedding + token * embedded + early, late_, late_elements_.data() + token * late_);
      std::copy_n(first.bias.data(), columns, table_.data() + token * columns);
    }
    if (early == 0) return;
    const LowMatrix weights = low_elements(first.low_input, first.inputs, columns, 0, early);
    LowRows rows(lstm_->compute, V, early);
    run_job(0, nullptr, [&](Team& team) {
      rows.round_share(*lstm_->level, V, embedding, embedded, false, team);
      team.barrier();
      low_matrix_share(*lstm_->level, weights, columns, rows, V, false, first.bias.data(), 0, table_.data(),
                       columns, team);
    });
  }
}

template <class T>
AttentionRows<T>::AttentionRows(const AttentionDecoder<T>& model, ptrdiff_t capacity, ptrdiff_t N,
                                ptrdiff_t S, const T* memory, const int32_t* lengths,
                                const LstmStates<T>& initial, const Poll& poll)
    : model_(model),
      capacity_(capacity),
      H_(model.shape().hidden_size),
      layers_(model.lstm(), capacity, first_columns()),
      sources_(static_cast<size_t>(capacity)),
      sources_next_(static_cast<size_t>(capacity)),
      first_(Buffer<T>::zeros(capacity * first_columns())),
      low_output_(model.output().compute, capacity, model.output().inputs) {
  const PackedAttention<T>& attention = model.attention();
  if (attention.additive()) queries_ = Buffer<T>(capacity * attention.A);
  if (!attention.none()) {
    joined_ = Buffer<T>(capacity * (attention.M + H_));
    outputs_ = Buffer<T>(capacity * attention.O);
  }
  if (!attention.none() && N > 0) {
    const auto memories =
        std::make_shared<const SourceMemory<T>>(attention, N, S, memory, lengths, false, poll);
    for (ptrdiff_t n = 0; n < N; ++n) sources_[static_cast<size_t>(n)] = {memories, n};
  }
  make_room(S);
  if (N > 0) layers_.set(0, N, initial.h0, initial.c0);
}

// For sources of up to S positions.
template <class T>
void AttentionRows<T>::make_room(ptrdiff_t S) {
  const PackedAttention<T>& attention = model_.attention();
  const ptrdiff_t covered = attention.covers() ? S : 0;
  auto weights = Buffer<T>(attention.none() ? 0 : capacity_ * S),
       coverage = Buffer<T>::zeros(capacity_ * covered),
       moved = Buffer<T>(capacity_ * std::max(model_.feeding() ? first_columns() : 0, covered));
  if (coverage_.size())
    for (ptrdiff_t j = 0; j < capacity_; ++j)
      std::copy_n(coverage_.data() + j * S_, S_, coverage.data() + j * S);
  weights_ = std::move(weights);
  coverage_ = std::move(coverage);
  moved_ = std::move(moved);
  S_ = S;
}

template <class T>
void AttentionRows<T>::attach(ptrdiff_t row, const Source<T>& source) {
  if (source.memory && source.length() > S_) make_room(source.length());
  sources_[static_cast<size_t>(row)] = source;
}

// From h of the last layer to the weights and contexts of all rows; waits for all threads before, if need be,
// and not after. Neighbours with the same source are made together.
template <class T>
void AttentionRows<T>::attend_share(Team& team, ptrdiff_t count) {
  const PackedAttention<T>& attention = model_.attention();
  const ptrdiff_t A = attention.A, joined = attention.M + H_;
  const Share rows = share_of(count, team.thread(), team.threads());
  const Scope scope(Phase::kAttention, -1, [&] {
    Work work;
    if (attention.additive()) work = product_work(count, A, H_, sizeof(T), sizeof(T), team.threads());
    for (ptrdiff_t j = rows.begin; j < rows.end; ++j)
      work = work + source(j).memory->attend_work(attention, source(j).n, 1, false);
    return work;
  });
  const T* query = layers_.h();
  ptrdiff_t query_row = layers_.pitch();
  if (attention.additive()) {
    gemm_share<T>(kernels(),
                  {.M = count,
                   .N = A,
                   .K = H_,
                   .a = query,
                   .a_row = query_row,
                   .b = attention.query.forward.data(),
                   .init = nullptr,
                   .init_row = 0,
                   .c = queries_.data(),
                   .c_row = A},
                  team);
    team.barrier();
    query = queries_.data();
    query_row = A;
  }
  for (ptrdiff_t j = rows.begin, end; j < rows.end; j = end) {
    const Source<T>& looked_at = source(j);
    for (end = j + 1; end < rows.end && source(end) == looked_at;) ++end;
    T* const weights = weights_.data() + j * S_;
    T* const coverage = attention.covers() ? coverage_.data() + j * S_ : nullptr;
    looked_at.memory->attend(attention, looked_at.n, end - j, query + j * query_row, query_row, coverage, S_,
                             weights, S_, joined_.data() + j * joined, joined);
    for (ptrdiff_t r = 0; r < end - j; ++r) {
      std::fill(weights + r * S_ + looked_at.length(), weights + (r + 1) * S_, T(0));
      if (coverage) kernels().add(S_, weights + r * S_, coverage + r * S_);
    }
  }
}

template <class T>
void AttentionRows<T>::step_share(Team& team, ptrdiff_t count, const int32_t* tokens, T* logits) {
  const PackedAttention<T>& attention = model_.attention();
  const Kernels<T>& k = kernels();
  const ptrdiff_t M = attention.M, O = attention.O, joined = M + H_;
  const Share rows = share_of(count, team.thread(), team.threads());
  if (bahdanau()) {
    attend_share(team, count);
    for (ptrdiff_t j = rows.begin; j < rows.end; ++j) std::copy_n(joined_.data() + j * joined, M, fed(j));
  }
  for (ptrdiff_t j = rows.begin; j < rows.end; ++j)
    std::copy_n(model_.late_elements(tokens[j]), model_.late(), fed(j) - model_.late());
  if (bahdanau() || model_.late() > 0) team.barrier();
  layers_.step_share(team, count, model_.first_input(tokens, first_.data()));
  if (!attention.none()) {
    if (!bahdanau()) attend_share(team, count);
    const Scope scope(Phase::kAttention, -1, [&] {
      return product_work(count, O, joined, sizeof(T), sizeof(T), team.threads()) +
             elements_work(rows.size() * O, 20, 2 * sizeof(T));
    });
    for (ptrdiff_t j = rows.begin; j < rows.end; ++j)
      std::copy_n(layers_.h() + j * layers_.pitch(), H_, joined_.data() + j * joined + M);
    team.barrier();
    gemm_share<T>(k,
                  {.M = count,
                   .N = O,
                   .K = joined,
                   .a = joined_.data(),
                   .a_row = joined,
                   .b = attention.output.forward.data(),
                   .init = nullptr,
                   .init_row = 0,
                   .c = outputs_.data(),
                   .c_row = O},
                  team);
    team.barrier();
    T* const a = outputs_.data() + rows.begin * O;
    k.tanh(rows.size() * O, a, a);
    for (ptrdiff_t j = rows.begin; model_.feeding() && j < rows.end; ++j)
      std::copy_n(outputs_.data() + j * O, O, fed(j));
    team.barrier();
  }
  const T* const a = attention.none() ? layers_.h() : outputs_.data();
  const ptrdiff_t a_row = attention.none() ? layers_.pitch() : O;
  round_for_share(team, model_.output(), count, a, a_row, low_output_);
  linear_share(team, model_.output(), count, a, a_row, low_output_, logits, vocabulary());
  team.barrier();
}

template <class T>
void AttentionRows<T>::gather(ptrdiff_t count, const int32_t* from) {
  layers_.gather(count, from);
  const auto move = [&](Buffer<T>& rows, ptrdiff_t n) {
    for (ptrdiff_t j = 0; j < count; ++j) std::copy_n(rows.data() + from[j] * n, n, moved_.data() + j * n);
    std::copy_n(moved_.data(), count * n, rows.data());
  };
  if (model_.feeding()) move(first_, first_columns());
  if (coverage_.size()) move(coverage_, S_);
  for (ptrdiff_t j = 0; j < count; ++j) sources_next_[static_cast<size_t>(j)] = source(from[j]);
  std::swap(sources_, sources_next_);
  for (Source<T>& left : sources_next_) {  // a source lives as long as its rows
    if (!left.memory) break;
    left = {};
  }
}

template <class T>
ptrdiff_t AttentionRows<T>::state_size(ptrdiff_t row) const {
  return layers_.state_size() + (model_.feeding() ? model_.fed() : 0) +
         (model_.attention().covers() ? source(row).length() : 0);
}

template <class T>
void AttentionRows<T>::save(ptrdiff_t row, T* state) const {
  state = layers_.save(row, state);
  if (model_.feeding()) state = std::copy_n(fed(row), model_.fed(), state);
  if (coverage_.size()) std::copy_n(coverage_.data() + row * S_, source(row).length(), state);
}

template <class T>
void AttentionRows<T>::load(ptrdiff_t row, const T* state) {
  state = layers_.load(row, state);
  if (model_.feeding()) {
    std::copy_n(state, model_.fed(), fed(row));
    state += model_.fed();
  }
  if (coverage_.size()) {
    T* const coverage = coverage_.data() + row * S_;
    std::fill(std::copy_n(state, source(row).length(), coverage), coverage + S_, T(0));
  }
}

template class AttentionDecoder<float>;
template class AttentionDecoder<double>;
template class AttentionRows<float>;
template class AttentionRows<double>;

}  // namespace fusedlstm
