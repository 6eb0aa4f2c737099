#include "decode/generate.h"

#include <algorithm>
#include <vector>

namespace fusedlstm {

template <class T>
void generate(StepRows<T>& rows, T* logits, const GenerationRequest<T>& request,
              const GenerationResult<T>& result, const Poll& poll) {
  const ptrdiff_t N = request.N, V = rows.vocabulary(), most = request.max_new_tokens;
  std::fill(result.tokens, result.tokens + N * most, -1);
  std::fill(result.log_probability, result.log_probability + N * most, T(0));
  std::fill(result.lengths, result.lengths + N, 0);
  std::vector<ptrdiff_t> id;  // the sequence of every live row
  for (ptrdiff_t b = 0; b < N; ++b) id.push_back(b);
  const auto end = [&](size_t j) {
    if (result.on_end) result.on_end(id[j], static_cast<ptrdiff_t>(j));
  };
  if (most == 0)
    for (size_t j = 0; j < id.size(); ++j) end(j);
  if (N == 0 || most == 0) return;
  Sampler<T> sampler(rows.kernels(), V, request.sampling);
  std::vector<int32_t> step_tokens(static_cast<size_t>(N)), token(static_cast<size_t>(N)), kept;

  const auto sample = [&](ptrdiff_t step) {  // from the logits to the next token of every live row
    std::fill(step_tokens.begin(), step_tokens.end(), -1);
    for (size_t j = 0; j < id.size(); ++j) {
      const ptrdiff_t b = id[j];
      const Choice<T> choice = sampler.choose(logits + static_cast<ptrdiff_t>(j) * V, request.seeds[b],
                                              static_cast<uint32_t>(step));
      token[j] = step_tokens[static_cast<size_t>(b)] = choice.token;
      result.tokens[b * most + step] = choice.token;
      result.log_probability[b * most + step] = choice.log_probability;
      ++result.lengths[b];
    }
    if (request.on_tokens) request.on_tokens(step_tokens.data());
    kept.clear();
    for (size_t j = 0; j < id.size(); ++j) {
      if (step + 1 == most || token[j] == request.stop_token)
        end(j);
      else
        kept.push_back(static_cast<int32_t>(j));
    }
    if (kept.size() == id.size()) return;
    for (size_t j = 0; j < kept.size(); ++j) {
      id[j] = id[static_cast<size_t>(kept[j])];
      token[j] = token[static_cast<size_t>(kept[j])];
    }
    id.resize(kept.size());
    rows.gather(static_cast<ptrdiff_t>(kept.size()), kept.data());
  };
  run_job(0, poll, [&](Team& team) {
    for (ptrdiff_t step = 0;; ++step) {
      if (team.thread() == 0) sample(step);
      team.barrier();
      if (id.empty()) return;
      rows.step_share(team, static_cast<ptrdiff_t>(id.size()), token.data(), logits);
    }
  });
}

template void generate(StepRows<float>&, float*, const GenerationRequest<float>&,
                       const GenerationResult<float>&, const Poll&);
template void generate(StepRows<double>&, double*, const GenerationRequest<double>&,
                       const GenerationResult<double>&, const Poll&);

}  // namespace fusedlstm
