#include "decode/generate.h"

#include <algorithm>

#include "runtime/profiler.h"

namespace fusedlstm {

template <class T>
void generate(StepRows<T>& rows, const T* logits, const GenerationRequest<T>& request,
              const GenerationResult<T>& result, const Poll& poll) {
  const SamplingOptions& options = *request.options;
  const ptrdiff_t V = rows.vocabulary(), n = options.num_sequences, R = request.N * n,
                  most = options.max_new_tokens, top = options.top_log_probabilities;
  std::fill_n(result.tokens, R * most, -1);
  std::fill_n(result.lengths, R, 0);
  std::fill_n(result.log_probabilities, R * most, T(0));
  std::fill_n(result.top_tokens, R * most * top, -1);
  std::fill_n(result.top_log_probabilities, R * most * top, T(0));
  std::fill_n(result.finish, R, Finish::kLength);
  std::fill_n(result.behind, R, 0);
  std::fill_n(result.states, R * result.state_row, T(0));
  if (R == 0) return;

  std::vector<int32_t> prompt_of;
  for (ptrdiff_t r = 0; r < R; ++r) prompt_of.push_back(static_cast<int32_t>(r / n));
  if (n > 1) rows.gather(R, prompt_of.data());
  if (most == 0) {
    for (ptrdiff_t r = 0; r < R; ++r) rows.save(r, result.states + r * result.state_row);
    return;
  }
  GenerationPool<T> pool(rows);
  const int32_t* prompt = request.prompts;
  for (ptrdiff_t r = 0; r < R; ++r) {
    const int32_t length = request.prompt_lengths[r / n];
    std::copy_n(logits + r / n * V, V, pool.logits(r));
    pool.add({r, request.options, request.seeds[r], {prompt, prompt + length}, length});
    if (r % n == n - 1) prompt += length;
  }
  std::vector<int32_t> step_tokens(static_cast<size_t>(R)), ended(static_cast<size_t>(R), -1);
  const auto take = [&](ptrdiff_t step) {
    const Scope scope(Phase::kSampling);
    pool.append();
    std::fill(step_tokens.begin(), step_tokens.end(), -1);
    for (ptrdiff_t j = 0; j < pool.count(); ++j) {
      const Choice<T>& choice = pool.choices()[static_cast<size_t>(j)];
      const ptrdiff_t r = pool.sequences()[static_cast<size_t>(j)].id, at = r * most + step;
      step_tokens[static_cast<size_t>(r)] = result.tokens[at] = choice.token;
      result.log_probabilities[at] = choice.log_probability;
      std::copy(choice.top.begin(), choice.top.end(), result.top_tokens + at * top);
      std::copy(choice.top_log_probability.begin(), choice.top_log_probability.end(),
                result.top_log_probabilities + at * top);
      ++result.lengths[r];
      if (choice.finish == Finish::kNot) continue;
      result.finish[r] = choice.finish;
      ended[static_cast<size_t>(r)] = result.behind[r] = choice.behind;
      rows.save(j, result.states + r * result.state_row);
    }
    if (request.on_tokens) request.on_tokens(step_tokens.data(), ended.data());
    pool.drop_finished();
  };
  const int threads = num_threads();
  pool.prepare(threads, request.hooks);
  run_job(threads, poll, [&](Team& team) {
    for (ptrdiff_t step = 0;; ++step) {
      pool.choose_share(team, request.hooks);
      if (team.thread() == 0) take(step);
      team.barrier();
      if (pool.count() == 0) return;
      pool.step_share(team);
    }
  });
}

template void generate(StepRows<float>&, const float*, const GenerationRequest<float>&,
                       const GenerationResult<float>&, const Poll&);
template void generate(StepRows<double>&, const double*, const GenerationRequest<double>&,
                       const GenerationResult<double>&, const Poll&);

}  // namespace fusedlstm
