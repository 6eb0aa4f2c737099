#include "decode/pool.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace fusedlstm {

template <class T>
GenerationPool<T>::GenerationPool(StepRows<T>& rows)
    : rows_(rows), logits_(rows.capacity() * rows.vocabulary()) {}

template <class T>
void GenerationPool<T>::keep(const std::vector<int32_t>& kept) {
  if (kept.size() == sequences_.size()) return;
  rows_.gather(static_cast<ptrdiff_t>(kept.size()), kept.data());
  for (size_t j = 0; j < kept.size(); ++j) {
    const size_t from = static_cast<size_t>(kept[j]);
    if (from == j) continue;
    sequences_[j] = std::move(sequences_[from]);
    std::copy_n(logits(kept[j]), rows_.vocabulary(), logits(static_cast<ptrdiff_t>(j)));
  }
  sequences_.erase(sequences_.begin() + static_cast<ptrdiff_t>(kept.size()), sequences_.end());
}

template <class T>
void GenerationPool<T>::choose_share(Team& team, const Hooks<T>& hooks) {
  const ptrdiff_t V = rows_.vocabulary();
  const bool hooked = hooks.token_mask || hooks.processor;
  const auto row_constrained = [&](const Sequence& sequence) {
    return hooked || is_constrained(sequence.options->constraints, sequence.history());
  };
  if (team.thread() == 0) {
    choices_.resize(sequences_.size());
    while (samplers_.size() < static_cast<size_t>(team.threads())) samplers_.emplace_back(rows_.kernels(), V);
    const ptrdiff_t all = rows_.capacity() * V;
    if (scores_.size() == 0 && std::any_of(sequences_.begin(), sequences_.end(), row_constrained))
      scores_ = Buffer<T>(all);
    if (hooks.token_mask) {
      if (allowed_.size() == 0) allowed_ = Buffer<bool>(all);
      hooks.token_mask(sequences_, allowed_.data());
    }
  }
  team.barrier();
  const Share share = share_of(count(), team.thread(), team.threads());
  const auto row_scores = [&](ptrdiff_t j) { return scores_.data() + j * V; };
  const auto constrain_row = [&](ptrdiff_t j) {
    const Sequence& sequence = sequences_[static_cast<size_t>(j)];
    constrain<T>(sequence.options->constraints, sequence.history(),
                 hooks.token_mask ? allowed_.data() + j * V : nullptr, V, logits(j), row_scores(j));
  };
  if (hooks.processor) {
    for (ptrdiff_t j = share.begin; j < share.end; ++j) constrain_row(j);
    team.barrier();
    if (team.thread() == 0) hooks.processor(sequences_, scores_.data());
    team.barrier();
  }
  for (ptrdiff_t j = share.begin; j < share.end; ++j) {
    const bool constrained = row_constrained(sequences_[static_cast<size_t>(j)]);
    if (constrained && !hooks.processor) constrain_row(j);
    choose_row(static_cast<size_t>(j), samplers_[static_cast<size_t>(team.thread())],
               constrained ? row_scores(j) : logits(j));
  }
  team.barrier();
}

template <class T>
void GenerationPool<T>::choose_row(size_t row, Sampler<T>& sampler, const T* scores) {
  const Sequence& sequence = sequences_[row];
  const SamplingOptions& options = *sequence.options;
  const History history = sequence.history();
  const T* const z = logits(static_cast<ptrdiff_t>(row));
  Choice<T>& choice = choices_[row];
  T largest, largest_score;
  try {
    const T log_sum = sampler.log_sum(z, &largest);
    largest_score = largest;
    if (scores != z) sampler.log_sum(scores, &largest_score);
    choice.token = sampler.choose(options, scores, largest_score, sequence.seed,
                                  static_cast<uint32_t>(history.new_tokens()));
    const auto log_probability = [&](int32_t token) { return (z[token] - largest) - log_sum; };
    choice.log_probability = log_probability(choice.token);
    choice.top.clear();
    choice.top_log_probability.clear();
    if (options.top_log_probabilities > 0) {
      choice.top = largest_tokens(z, rows_.vocabulary(), options.top_log_probabilities);
      for (const int32_t token : choice.top) choice.top_log_probability.push_back(log_probability(token));
    }
  } catch (const std::domain_error& error) {
    throw std::domain_error("generate: sequence " + std::to_string(sequence.id) + ", new token " +
                            std::to_string(history.new_tokens()) + ": " + error.what());
  }
}

template <class T>
void GenerationPool<T>::append() {
  for (size_t j = 0; j < sequences_.size(); ++j) {
    Sequence& sequence = sequences_[j];
    const SamplingOptions& options = *sequence.options;
    Choice<T>& choice = choices_[j];
    sequence.tokens.push_back(choice.token);
    const std::vector<int32_t>& stops = options.constraints.stop_tokens;
    const ptrdiff_t behind = behind_stop_string(options, sequence.history());
    choice.behind = static_cast<int32_t>(std::max<ptrdiff_t>(behind, 0));
    choice.finish = behind >= 0                                                          ? Finish::kStopString
                    : std::find(stops.begin(), stops.end(), choice.token) != stops.end() ? Finish::kStopToken
                    : sequence.history().new_tokens() >= options.max_new_tokens          ? Finish::kLength
                                                                                         : Finish::kNot;
  }
}

template <class T>
std::vector<int32_t> GenerationPool<T>::unfinished() const {
  std::vector<int32_t> rows;
  for (size_t j = 0; j < choices_.size(); ++j)
    if (choices_[j].finish == Finish::kNot) rows.push_back(static_cast<int32_t>(j));
  return rows;
}

template <class T>
void GenerationPool<T>::step_share(Team& team) {
  if (count() == 0) return;
  if (team.thread() == 0) {
    fed_.clear();
    for (const Sequence& sequence : sequences_) fed_.push_back(sequence.tokens.back());
  }
  team.barrier();
  rows_.step_share(team, count(), fed_.data(), logits_.data());
}

template class GenerationPool<float>;
template class GenerationPool<double>;

}  // namespace fusedlstm
