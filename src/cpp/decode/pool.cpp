#include "decode/pool.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "runtime/profiler.h"

namespace fusedlstm {

template <class T>
GenerationPool<T>::GenerationPool(StepRows<T>& rows)
    : rows_(rows), logits_(rows.capacity() * rows.vocabulary()) {}

template <class T>
void GenerationPool<T>::keep(const std::vector<int32_t>& kept) {
  if (kept.size() == sequences_.size()) return;
  rows_.gather(static_cast<ptrdiff_t>(kept.size()), kept.data());
  for (size_t j = 0; j < kept.size(); ++j)
    if (static_cast<size_t>(kept[j]) != j)
      sequences_[j] = std::move(sequences_[static_cast<size_t>(kept[j])]);
  sequences_.erase(sequences_.begin() + static_cast<ptrdiff_t>(kept.size()), sequences_.end());
}

template <class T>
void GenerationPool<T>::remove(ptrdiff_t row) {
  std::vector<int32_t> kept;
  for (int32_t j = 0; j < count(); ++j)
    if (j != row) kept.push_back(j);
  std::copy(logits(row + 1), logits(count()), logits(row));
  keep(kept);
}

template <class T>
void GenerationPool<T>::prepare(int threads, const Hooks<T>& hooks) {
  const ptrdiff_t V = rows_.vocabulary(), all = rows_.capacity() * V;
  choices_.resize(sequences_.size());
  while (samplers_.size() < static_cast<size_t>(threads)) samplers_.emplace_back(rows_.kernels(), V);
  const bool scored = hooks.token_mask || hooks.processor ||
                      std::any_of(sequences_.begin(), sequences_.end(), [](const Sequence& sequence) {
                        return may_constrain(sequence.options->constraints);
                      });
  if (scored && scores_.size() == 0) scores_ = Buffer<T>(all);
  if (hooks.token_mask && allowed_.size() == 0) allowed_ = Buffer<bool>(all);
}

template <class T>
void GenerationPool<T>::choose_share(Team& team, const Hooks<T>& hooks) {
  const Scope scope(Phase::kSampling);
  const ptrdiff_t V = rows_.vocabulary();
  if (hooks.token_mask) {
    if (team.thread() == 0) hooks.token_mask(sequences_, allowed_.data());
    team.barrier();
  }
  const Share share = share_of(count(), team.thread(), team.threads());
  const auto constrain_row = [&](ptrdiff_t j) {
    const Sequence& sequence = sequences_[static_cast<size_t>(j)];
    T* const scores = scores_.data() + j * V;
    constrain<T>(sequence.options->constraints, sequence.history(),
                 hooks.token_mask ? allowed_.data() + j * V : nullptr, V, logits(j), scores);
    return scores;
  };
  if (hooks.processor) {
    for (ptrdiff_t j = share.begin; j < share.end; ++j) constrain_row(j);
    team.barrier();
    if (team.thread() == 0) hooks.processor(sequences_, scores_.data());
    team.barrier();
  }
  for (ptrdiff_t j = share.begin; j < share.end; ++j) {
    const Sequence& sequence = sequences_[static_cast<size_t>(j)];
    const T* scores = logits(j);
    if (hooks.processor)
      scores = scores_.data() + j * V;
    else if (hooks.token_mask || is_constrained(sequence.options->constraints, sequence.history()))
      scores = constrain_row(j);
    choose_row(static_cast<size_t>(j), samplers_[static_cast<size_t>(team.thread())], scores);
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
void GenerationPool<T>::drop_finished() {
  std::vector<int32_t> kept;
  for (size_t j = 0; j < sequences_.size(); ++j)
    if (choices_[j].finish == Finish::kNot) kept.push_back(static_cast<int32_t>(j));
  keep(kept);
  fed_.clear();
  for (const Sequence& sequence : sequences_) fed_.push_back(sequence.tokens.back());
}

template <class T>
void GenerationPool<T>::step_share(Team& team) {
  if (count() > 0) rows_.step_share(team, count(), fed_.data(), logits_.data());
}

template class GenerationPool<float>;
template class GenerationPool<double>;

}  // namespace fusedlstm
