#include "decode/attention_training.h"

#include <algorithm>
#include <utility>

#include "decode/draw.h"
#include "kernels/philox.h"

namespace fusedlstm {
namespace {

// The slots of step s that are this thread's.
template <class Body>
void for_slots(const Team& team, const Rows& rows, ptrdiff_t s, const Body& body) {
  for (ptrdiff_t slot = team.thread(); slot < rows.active(s); slot += team.threads()) body(slot);
}

}  // namespace

template <class T>
AttentionTape<T>::AttentionTape(std::shared_ptr<const PackedWeights<T>> lstm,
                                std::shared_ptr<const PackedAttention<T>> attention,
                                const AttentionBatch<T>& batch, const AttentionOutputs<T>& out,
                                const Poll& poll)
    : lstm_(std::move(lstm)),
      attention_(std::move(attention)),
      k_(lstm_->kernels()),
      rows_(batch.N, batch.time, batch.lengths),
      F_(batch.feeding ? attention_->O
         : bahdanau()  ? attention_->M
                       : 0),
      M_(attention_->M),
      H_(attention_->H),
      A_(attention_->A),
      O_(attention_->O),
      S_(attention_->none() ? 0 : batch.S),
      P_(rows_.total()),
      feeding_(batch.feeding),
      scheduled_(batch.scheduled.embedding != nullptr),
      threads_(layer_threads(batch.N, P_, H_, lstm_->shape.input_size) == 1 ? 1 : num_threads()),
      steps_(*lstm_, rows_, batch.initial, batch.dropout, batch.seed, threads_,
             scheduled_ ? 0 : lstm_->shape.input_size - F_),
      x_pitch_(row_pitch<T>(lstm_->shape.input_size)),
      joined_pitch_(row_pitch<T>(M_ + H_)),
      x_(P_ * x_pitch_),
      joined_(attention_->none() ? 0 : P_ * joined_pitch_),
      outputs_(P_ * O_),
      weights_(P_ * S_),
      coverage_(attention_->covers() ? P_ * S_ : 0),
      queries_(attention_->additive() ? P_ * A_ : 0) {
  E_ = lstm_->shape.input_size - F_;
  if (!attention_->none())
    memory_ = SourceMemory<T>(*attention_, batch.N, batch.S, batch.memory, batch.memory_lengths,
                              lstm_->backward, poll);
  if (scheduled_) plan_own_tokens(batch);
  forward(batch, out, poll);
}

// Which rows are fed their own token is known before the first step: only their logits are made.
template <class T>
void AttentionTape<T>::plan_own_tokens(const AttentionBatch<T>& batch) {
  size_t most = 0;
  own_.resize(static_cast<size_t>(rows_.steps()));
  for (ptrdiff_t s = 1; s < rows_.steps(); ++s) {
    std::vector<int32_t>& own = own_[static_cast<size_t>(s)];
    for (ptrdiff_t slot = 0; slot < rows_.active(s); ++slot) {
      const ptrdiff_t n = rows_.sequence(slot);
      const Philox4 random =
          philox(batch.seed, kScheduleStream, static_cast<uint32_t>(n), static_cast<uint32_t>(s), 0);
      if (uniform(random.word[0], random.word[1]) < batch.scheduled.probability[n * batch.time + s])
        own.push_back(static_cast<int32_t>(slot));
    }
    most = std::max(most, own.size());
  }
  const PackedLinear<T>& output = *batch.scheduled.output;
  const ptrdiff_t rows = static_cast<ptrdiff_t>(most);
  own_rows_ = Buffer<T>(rows * O_);
  low_own_rows_ = LowRows(output.compute, rows, O_);
  logits_ = Buffer<T>(rows * output.outputs);
}

// After a_{s-1}: the embeddings of the rows that are fed their own token at step s.
template <class T>
void AttentionTape<T>::own_tokens_share(Team& team, const AttentionBatch<T>& batch, ptrdiff_t s,
                                        int32_t* tokens) {
  const Scope scope(Phase::kSampling);
  const std::vector<int32_t>& own = own_[static_cast<size_t>(s)];
  const PackedLinear<T>& output = *batch.scheduled.output;
  const ptrdiff_t count = static_cast<ptrdiff_t>(own.size()), V = output.outputs;
  if (count == 0) return;
  for (ptrdiff_t j = team.thread(); j < count; j += team.threads())
    std::copy_n(outputs_.data() + (rows_.start(s - 1) + own[static_cast<size_t>(j)]) * O_, O_,
                own_rows_.data() + j * O_);
  team.barrier();
  round_for_share(team, output, count, own_rows_.data(), O_, low_own_rows_);
  linear_share(team, output, count, own_rows_.data(), O_, low_own_rows_, logits_.data(), V);
  team.barrier();
  for (ptrdiff_t j = team.thread(); j < count; j += team.threads()) {
    const ptrdiff_t slot = own[static_cast<size_t>(j)], n = rows_.sequence(slot);
    T* const logits = logits_.data() + j * V;
    int32_t token = static_cast<int32_t>(std::max_element(logits, logits + V) - logits);
    if (batch.scheduled.sample) {
      const Philox4 random =
          philox(batch.seed, kScheduleStream, static_cast<uint32_t>(n), static_cast<uint32_t>(s), 0);
      T largest;
      k_.softmax_row(V, logits, T(1), logits, &largest);
      const int32_t drawn = draw_by_weight(V, logits, uniform(random.word[2], random.word[3]));
      if (drawn >= 0) token = drawn;
    }
    tokens[n * batch.time + s] = token;
    std::copy_n(batch.scheduled.embedding + token * E_, E_, x_.data() + (rows_.start(s) + slot) * x_pitch_);
  }
}

// Queries of the additive kinds, W_q h; ends with a barrier.
template <class T>
void AttentionTape<T>::queries_share(Team& team, ptrdiff_t s) {
  if (!attention_->additive()) return;
  const Scope scope(Phase::kAttention, -1, [&] {
    return product_work(rows_.active(s), A_, H_, sizeof(T), sizeof(T), team.threads());
  });
  const MatrixRows<T> h = query_rows(s);
  gemm_share<T>(k_,
                {.M = rows_.active(s),
                 .N = A_,
                 .K = H_,
                 .a = h.data,
                 .a_row = h.pitch,
                 .b = attention_->query.forward.data(),
                 .init = nullptr,
                 .init_row = 0,
                 .c = queries_.data() + rows_.start(s) * A_,
                 .c_row = A_},
                team);
  team.barrier();
}

template <class T>
Work AttentionTape<T>::attend_work(const Team& team, ptrdiff_t s, bool backward) const {
  Work work;
  for_slots(team, rows_, s, [&](ptrdiff_t slot) {
    work = work + memory_.attend_work(*attention_, rows_.sequence(slot), 1, backward);
  });
  return work;
}

// The contexts of step s, side by side with h or, where h is still to come, into the input as well.
template <class T>
void AttentionTape<T>::attend_share(const Team& team, ptrdiff_t s, bool to_input) {
  const Scope scope(Phase::kAttention, -1, [&] { return attend_work(team, s, false); });
  const MatrixRows<T> h = query_rows(s);
  for_slots(team, rows_, s, [&](ptrdiff_t slot) {
    const ptrdiff_t row = rows_.start(s) + slot, n = rows_.sequence(slot), S = memory_.length(n);
    T* const context = joined_.data() + row * joined_pitch_;
    T* const weights = weights_.data() + row * S_;
    T* const coverage = coverage_.size() ? coverage_.data() + row * S_ : nullptr;
    if (coverage && s == 0) {
      std::fill_n(coverage, S, T(0));
    } else if (coverage) {
      const ptrdiff_t before = (rows_.start(s - 1) + slot) * S_;
      std::copy_n(coverage_.data() + before, S, coverage);
      k_.add(S, weights_.data() + before, coverage);
    }
    const T* const query = attention_->additive() ? queries_.data() + row * A_ : h.row(slot);
    memory_.attend(*attention_, n, 1, query, A_, coverage, S_, weights, S_, context, joined_pitch_);
    std::fill(weights + S, weights + S_, T(0));
    if (to_input)
      std::copy_n(context, M_, x_.data() + row * x_pitch_ + E_);
    else
      std::copy_n(h.row(slot), H_, context + M_);
  });
}

// a = tanh(W_o [context ; h]) of packed rows; waits for all threads.
template <class T>
void AttentionTape<T>::outputs_share(Team& team, ptrdiff_t first, ptrdiff_t count) {
  const Scope scope(Phase::kAttention, -1, [&] {
    return product_work(count, O_, M_ + H_, sizeof(T), sizeof(T), team.threads()) +
           elements_work(count * O_ / team.threads(), 20, 2 * sizeof(T));
  });
  gemm_share<T>(k_,
                {.M = count,
                 .N = O_,
                 .K = M_ + H_,
                 .a = joined_.data() + first * joined_pitch_,
                 .a_row = joined_pitch_,
                 .b = attention_->output.forward.data(),
                 .init = nullptr,
                 .init_row = 0,
                 .c = outputs_.data() + first * O_,
                 .c_row = O_},
                team);
  team.barrier();
  const Share share = share_of(count, team.thread(), team.threads());
  T* const a = outputs_.data() + (first + share.begin) * O_;
  k_.tanh(share.size() * O_, a, a);
  team.barrier();
}

template <class T>
void AttentionTape<T>::forward(const AttentionBatch<T>& batch, const AttentionOutputs<T>& out,
                               const Poll& poll) {
  const bool none = attention_->none(), stepwise_outputs = feeding_ || scheduled_;
  if (out.tokens) std::fill_n(out.tokens, batch.N * batch.time, -1);
  run_job(threads_, poll, [&](Team& team) {
    for (ptrdiff_t s = 0; s < rows_.steps(); ++s)
      for_slots(team, rows_, s, [&](ptrdiff_t slot) {
        std::copy_n(batch.x + rows_.user_row(s, slot, 0) * E_, E_,
                    x_.data() + (rows_.start(s) + slot) * x_pitch_);
      });
    team.barrier();
    if (!scheduled_) steps_.input_ahead_share(team, {x_.data(), x_pitch_});
    for (ptrdiff_t s = 0; s < rows_.steps(); ++s) {
      const ptrdiff_t first = rows_.start(s);
      T* const x = x_.data() + first * x_pitch_;
      if (scheduled_ && s > 0) own_tokens_share(team, batch, s, out.tokens);
      if (feeding_) {
        for_slots(team, rows_, s, [&](ptrdiff_t slot) {
          T* const fed = x + slot * x_pitch_ + E_;
          if (s == 0)
            std::fill_n(fed, O_, T(0));
          else
            std::copy_n(outputs_.data() + (rows_.start(s - 1) + slot) * O_, O_, fed);
        });
      } else if (bahdanau()) {
        queries_share(team, s);
        attend_share(team, s, true);
      }
      team.barrier();
      steps_.forward_share(team, s, {x, x_pitch_});
      const MatrixRows<T> h = steps_.h(s);
      if (none) {
        for_slots(team, rows_, s, [&](ptrdiff_t slot) {
          std::copy_n(h.row(slot), H_, outputs_.data() + (first + slot) * O_);
        });
      } else if (bahdanau()) {
        for_slots(team, rows_, s, [&](ptrdiff_t slot) {
          std::copy_n(h.row(slot), H_, joined_.data() + (first + slot) * joined_pitch_ + M_);
        });
      } else {
        queries_share(team, s);
        attend_share(team, s, false);
      }
      if (!stepwise_outputs) continue;
      team.barrier();
      if (!none) outputs_share(team, first, rows_.active(s));
    }
    team.barrier();
    if (!none && !stepwise_outputs) outputs_share(team, 0, P_);
    for (ptrdiff_t slot = team.thread(); slot < rows_.batch(); slot += team.threads()) {
      T* const y = out.y + rows_.sequence(slot) * rows_.time() * O_;
      for (ptrdiff_t s = 0; s < rows_.length(slot); ++s)
        std::copy_n(outputs_.data() + (rows_.start(s) + slot) * O_, O_, y + s * O_);
      std::fill(y + rows_.length(slot) * O_, y + rows_.time() * O_, T(0));
    }
  });
  steps_.final_states(out.h_n, out.c_n);
}

template <class T>
void AttentionTape<T>::copy_weights(T* weights) const {
  std::fill_n(weights, rows_.batch() * rows_.time() * S_, T(0));
  for (ptrdiff_t s = 0; s < rows_.steps(); ++s)
    for (ptrdiff_t slot = 0; slot < rows_.active(s); ++slot)
      std::copy_n(weights_.data() + (rows_.start(s) + slot) * S_, S_,
                  weights + rows_.user_row(s, slot, 0) * S_);
}

template <class T>
size_t AttentionTape<T>::bytes() const {
  size_t sum = steps_.bytes() + memory_.bytes();
  for (const Buffer<T>* part : {&x_, &joined_, &outputs_, &weights_, &coverage_, &queries_})
    sum += part->bytes();
  return sum;
}

// From the derivatives of contexts to those of scores and queries; with dot and general, these are added to
// those of h.
template <class T>
void AttentionTape<T>::attend_backward_share(const Team& team, ptrdiff_t s) {
  const Scope scope(Phase::kAttention, -1, [&] { return attend_work(team, s, true); });
  const bool additive = attention_->additive();
  const MatrixRows<T> h = query_rows(s);
  for_slots(team, rows_, s, [&](ptrdiff_t slot) {
    const ptrdiff_t row = rows_.start(s) + slot, n = rows_.sequence(slot);
    const auto at = [&](Buffer<T>& rows, ptrdiff_t pitch, ptrdiff_t r) {
      return rows.size() ? rows.data() + r * pitch : nullptr;
    };
    T* const d_joined = d_joined_.data() + row * joined_pitch_;
    T* const d_query = d_queries_.data() + row * A_;
    memory_.attend_backward(
        *attention_, n,
        {.query = additive ? queries_.data() + row * A_ : h.row(slot),
         .coverage = at(coverage_, S_, row),
         .weights = weights_.data() + row * S_,
         .d_context = d_joined,
         .d_scores = d_scores_.data() + row * S_,
         .d_query = d_query,
         .d_v = at(d_v_, A_, row),
         .d_w = at(d_w_, A_, row),
         .d_keys = additive ? d_key_panels_.data() + memory_.key_panels_offset(n) : nullptr,
         .d_coverage = at(d_coverage_, S_, slot)});
    if (!additive) k_.add(H_, d_query, d_joined + M_);
  });
}

// From the derivatives of a to those of the argument of tanh, and of [context ; h]; waits for all threads.
template <class T>
void AttentionTape<T>::output_gradients_share(Team& team, ptrdiff_t first, ptrdiff_t count) {
  const Scope scope(Phase::kAttention, -1, [&] {
    return product_work(count, M_ + H_, O_, sizeof(T), sizeof(T), team.threads()) +
           elements_work(count * O_ / team.threads(), 4, 3 * sizeof(T));
  });
  const Share share = share_of(count, team.thread(), team.threads());
  const T* const a = outputs_.data() + first * O_;
  T* const d = d_outputs_.data() + first * O_;
  for (ptrdiff_t j = share.begin * O_; j < share.end * O_; ++j) d[j] *= (1 - a[j]) * (1 + a[j]);
  team.barrier();
  gemm_share<T>(k_,
                {.M = count,
                 .N = M_ + H_,
                 .K = O_,
                 .a = d,
                 .a_row = O_,
                 .b = attention_->output.backward.data(),
                 .init = nullptr,
                 .init_row = 0,
                 .c = d_joined_.data() + first * joined_pitch_,
                 .c_row = joined_pitch_},
                team);
  team.barrier();
}

template <class T>
void AttentionTape<T>::backward(const T* dy, const T* dh_n, const T* dc_n, const T* memory,
                                const AttentionGradients<T>& gradients, const Poll& poll) {
  const bool none = attention_->none(), additive = attention_->additive();
  const ptrdiff_t N = rows_.batch();
  order_ = ReductionOrder(rows_, 0, rows_.steps());
  d_outputs_ = Buffer<T>(P_ * O_);
  dx_ = Buffer<T>(P_ * x_pitch_);
  if (!none) {
    d_joined_ = Buffer<T>(P_ * joined_pitch_);
    d_scores_ = Buffer<T>(P_ * S_);
    d_queries_ = Buffer<T>(P_ * A_);
    d_keys_ = Buffer<T>(attention_->kind == Attention::kDot ? 0 : N * S_ * A_);
  }
  if (additive) {
    d_v_ = Buffer<T>(P_ * A_);
    d_key_panels_ = Buffer<T>::zeros(memory_.key_panels_total());
  }
  if (attention_->covers()) {
    d_w_ = Buffer<T>(P_ * A_);
    d_coverage_ = Buffer<T>::zeros(N * S_);
  }
  if (bahdanau()) d_h_ = Buffer<T>::zeros(N * H_);
  for (int t = 0; t < threads_; ++t)
    scratch_.emplace_back(none ? 0 : transposed_scratch(M_ + std::max(H_, A_), k_.panel));
  steps_.begin_backward(dh_n, dc_n);
  run_job(threads_, poll, [&](Team& team) {
    for (ptrdiff_t s = 0; s < rows_.steps(); ++s)
      for_slots(team, rows_, s, [&](ptrdiff_t slot) {
        std::copy_n(dy + rows_.user_row(s, slot, 0) * O_, O_,
                    d_outputs_.data() + (rows_.start(s) + slot) * O_);
      });
    team.barrier();
    if (!none && !feeding_) output_gradients_share(team, 0, P_);
    for (ptrdiff_t s = rows_.steps() - 1; s >= 0; --s) {
      const ptrdiff_t first = rows_.start(s), later = s + 1 < rows_.steps() ? rows_.active(s + 1) : 0;
      T* const dx = dx_.data() + first * x_pitch_;
      T* const d_h = none ? nullptr : d_joined_.data() + first * joined_pitch_ + M_;
      if (feeding_) {
        for_slots(team, rows_, s, [&](ptrdiff_t slot) {
          if (slot < later)
            k_.add(O_, dx_.data() + (rows_.start(s + 1) + slot) * x_pitch_ + E_,
                   d_outputs_.data() + (first + slot) * O_);
        });
        team.barrier();
        output_gradients_share(team, first, rows_.active(s));
      }
      if (none) {
        steps_.backward_share(team, s, {d_outputs_.data() + first * O_, O_}, dx, x_pitch_);
      } else if (bahdanau()) {
        for_slots(team, rows_, s, [&](ptrdiff_t slot) {
          k_.add(H_, d_h_.data() + slot * H_, d_h + slot * joined_pitch_);  // 0 in its last step
        });
        team.barrier();
        steps_.backward_share(team, s, {d_h, joined_pitch_}, dx, x_pitch_);
        for_slots(team, rows_, s, [&](ptrdiff_t slot) {
          k_.add(M_, dx + slot * x_pitch_ + E_, d_h + slot * joined_pitch_ - M_);
        });
        attend_backward_share(team, s);
      } else {
        attend_backward_share(team, s);
      }
      if (additive) {  // through the query, to the h it is made of
        team.barrier();
        const Scope scope(Phase::kAttention, -1, [&] {
          return product_work(rows_.active(s), H_, A_, sizeof(T), sizeof(T), team.threads());
        });
        T* const to = bahdanau() ? d_h_.data() : d_h;
        const ptrdiff_t to_row = bahdanau() ? H_ : joined_pitch_;
        gemm_share<T>(k_,
                      {.M = rows_.active(s),
                       .N = H_,
                       .K = A_,
                       .a = d_queries_.data() + first * A_,
                       .a_row = A_,
                       .b = attention_->query.backward.data(),
                       .init = bahdanau() ? nullptr : d_h,
                       .init_row = bahdanau() ? 0 : joined_pitch_,
                       .c = to,
                       .c_row = to_row},
                      team);
      }
      if (none) continue;
      team.barrier();
      if (!bahdanau()) steps_.backward_share(team, s, {d_h, joined_pitch_}, dx, x_pitch_);
    }
    team.barrier();
    if (!scheduled_) steps_.input_ahead_gradients_share(team, dx_.data(), x_pitch_);
    team.barrier();
    for (ptrdiff_t slot = team.thread(); slot < N; slot += team.threads()) {
      T* const to = gradients.dx + rows_.sequence(slot) * rows_.time() * E_;
      for (ptrdiff_t s = 0; s < rows_.length(slot); ++s)
        std::copy_n(dx_.data() + (rows_.start(s) + slot) * x_pitch_, E_, to + s * E_);
      std::fill(to + rows_.length(slot) * E_, to + rows_.time() * E_, T(0));
    }
    steps_.weight_gradients_share(team, {x_.data(), x_pitch_}, gradients.lstm);
    if (!none) weight_gradients_share(team, memory, gradients);
  });
  steps_.initial_gradients(gradients.dh0, gradients.dc0);
  if (bahdanau() && rows_.steps() > 0)
    for (ptrdiff_t slot = 0; slot < rows_.active(0); ++slot)
      k_.add(H_, d_h_.data() + slot * H_,
             gradients.dh0 + ((lstm_->shape.num_layers - 1) * N + rows_.sequence(slot)) * H_);
}

// All weights but the LSTM's, and the memory, as products over all rows. Sums go from the last step to the
// first, within a step by slot; over the memory by source, then by position.
template <class T>
void AttentionTape<T>::weight_gradients_share(Team& team, const T* memory,
                                              const AttentionGradients<T>& gradients) {
  const ptrdiff_t N = rows_.batch(), R = order_.rows();
  const bool additive = attention_->additive(), dot = attention_->kind == Attention::kDot;
  const auto product = [](ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, int threads) {
    return product_work(m, n, k, sizeof(T), sizeof(T), threads);
  };
  const Scope scope(Phase::kWeightGradient, -1, [&] {
    Work work = product(O_, M_ + H_, R, team.threads());
    if (additive) work = work + product(A_, H_, R, team.threads());
    for (ptrdiff_t slot = team.thread(); slot < N; slot += team.threads()) {
      const ptrdiff_t S = memory_.length(rows_.sequence(slot)), steps = rows_.length(slot);
      work = work + product(S, M_, steps, 1);
      if (!additive) work = work + product(S, A_, steps, 1);
      if (!dot) work = work + product(S, M_, A_, 1) + product(A_, M_, S, 1);
    }
    return work;
  });
  T* const scratch = scratch_[static_cast<size_t>(team.thread())].data();
  const int32_t* const order = order_.row.data();
  gemm_transposed_share<T>(
      k_,
      {.M = O_,
       .R = R,
       .a = d_outputs_.data(),
       .a_row = O_,
       .a_rows = order,
       .side = {M_ + H_, joined_.data(), joined_pitch_, order, gradients.output, M_ + H_},
       .scratch = scratch},
      team);
  if (additive) {
    const MatrixRows<T> h = steps_.h_before(0);  // all states, with the initial ones first
    std::vector<int32_t> after(order_.row);
    for (int32_t& row : after) row += static_cast<int32_t>(N);
    gemm_transposed_share<T>(
        k_,
        {.M = A_,
         .R = R,
         .a = d_queries_.data(),
         .a_row = A_,
         .a_rows = order,
         .side = {H_, h.data, h.pitch, bahdanau() ? order_.state_before.data() : after.data(),
                  gradients.query, H_},
         .scratch = scratch},
        team);
    const Share columns = share_of(A_, team.thread(), team.threads(), 16);
    if (columns.size() > 0) {
      k_.add_rows(R, columns.size(), d_v_.data() + columns.begin, A_, order, gradients.v + columns.begin);
      if (d_w_.size())
        k_.add_rows(R, columns.size(), d_w_.data() + columns.begin, A_, order,
                    gradients.coverage + columns.begin);
    }
  }

  for (ptrdiff_t slot = team.thread(); slot < N; slot += team.threads()) {
    const ptrdiff_t n = rows_.sequence(slot), S = memory_.length(n), steps = rows_.length(slot);
    T* const d_memory = gradients.d_memory + n * S_ * M_;
    T* const d_keys = dot ? d_memory : d_keys_.data() + n * S_ * A_;
    std::vector<int32_t> row, state;
    for (ptrdiff_t s = steps - 1; s >= 0; --s) {
      row.push_back(static_cast<int32_t>(rows_.start(s) + slot));
      state.push_back(static_cast<int32_t>(rows_.state_after(s) + slot));
    }
    std::fill_n(d_memory, S_ * M_, T(0));
    k_.gemm_transposed({.M = S,
                        .R = steps,
                        .a = weights_.data(),
                        .a_row = S_,
                        .a_rows = row.data(),
                        .side = {M_, d_joined_.data(), joined_pitch_, row.data(), d_memory, M_},
                        .scratch = scratch});
    if (additive) {
      const T* const panels = d_key_panels_.data() + memory_.key_panels_offset(n);
      for (ptrdiff_t s = 0; s < S; ++s)
        for (ptrdiff_t a = 0; a < A_; ++a)
          d_keys[s * A_ + a] = panels[s / k_.panel * (A_ * k_.panel) + a * k_.panel + s % k_.panel];
    } else {
      if (!dot) std::fill_n(d_keys, S * A_, T(0));
      k_.gemm_transposed(
          {.M = S,
           .R = steps,
           .a = d_scores_.data(),
           .a_row = S_,
           .a_rows = row.data(),
           .side = {A_, steps_.h_before(0).data, steps_.h_before(0).pitch, state.data(), d_keys, A_},
           .scratch = scratch});
    }
    if (!dot)
      gemm_in_pieces<T>(k_,
                        {.M = S,
                         .N = M_,
                         .K = A_,
                         .a = d_keys,
                         .a_row = A_,
                         .b = attention_->key.backward.data(),
                         .init = d_memory,
                         .init_row = M_,
                         .c = d_memory,
                         .c_row = M_},
                        team);
    team.poll();
  }
  team.barrier();
  if (dot) return;
  std::vector<int32_t> valid;
  for (ptrdiff_t n = 0; n < N; ++n)
    for (ptrdiff_t s = 0; s < memory_.length(n); ++s) valid.push_back(static_cast<int32_t>(n * S_ + s));
  gemm_transposed_share<T>(k_,
                           {.M = A_,
                            .R = static_cast<ptrdiff_t>(valid.size()),
                            .a = d_keys_.data(),
                            .a_row = A_,
                            .a_rows = valid.data(),
                            .side = {M_, memory, M_, valid.data(), gradients.key, M_},
                            .scratch = scratch},
                           team);
}

template class AttentionTape<float>;
template class AttentionTape<double>;

}  // namespace fusedlstm
