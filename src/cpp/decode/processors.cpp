#include "decode/processors.h"

#include <algorithm>
#include <limits>

namespace fusedlstm {
namespace {

const int32_t* forced_token(const Constraints& constraints, const History& history) {
  const auto found = constraints.forced_tokens.find(history.new_tokens());
  return found == constraints.forced_tokens.end() ? nullptr : &found->second;
}

}  // namespace

bool may_constrain(const Constraints& constraints) {
  return constraints.repetition_penalty != 1 || constraints.no_repeat_ngram_size > 0 ||
         !constraints.banned_tokens.empty() || !constraints.forced_tokens.empty() ||
         (constraints.min_new_tokens > 0 && !constraints.stop_tokens.empty());
}

bool is_constrained(const Constraints& constraints, const History& history) {
  return constraints.repetition_penalty != 1 || constraints.no_repeat_ngram_size > 0 ||
         !constraints.banned_tokens.empty() || forced_token(constraints, history) ||
         (history.new_tokens() < constraints.min_new_tokens && !constraints.stop_tokens.empty());
}

template <class T>
void constrain(const Constraints& constraints, const History& history, const bool* allowed, ptrdiff_t V,
               const T* logits, T* scores) {
  constexpr T never = -std::numeric_limits<T>::infinity();
  if (const int32_t* const forced = forced_token(constraints, history)) {
    std::fill(scores, scores + V, never);
    scores[*forced] = T(0);
    return;
  }
  std::copy(logits, logits + V, scores);
  if (constraints.repetition_penalty != 1) {
    const T penalty = static_cast<T>(constraints.repetition_penalty);
    for (ptrdiff_t t = 0; t < history.count; ++t) {  // from the logits: once per token, however often seen
      const T z = logits[history.tokens[t]];
      scores[history.tokens[t]] = z < 0 ? z * penalty : z / penalty;
    }
  }
  if (const ptrdiff_t n = constraints.no_repeat_ngram_size; n > 0 && n <= history.count) {
    const int32_t* const end = history.tokens + history.count;
    const int32_t* const last = end - (n - 1);  // the n - 1 tokens that the next one would complete
    for (const int32_t* at = history.tokens; at + n <= end; ++at)
      if (std::equal(last, end, at)) scores[at[n - 1]] = never;
  }
  for (const int32_t token : constraints.banned_tokens) scores[token] = never;
  if (history.new_tokens() < constraints.min_new_tokens)
    for (const int32_t token : constraints.stop_tokens) scores[token] = never;
  if (allowed)
    for (ptrdiff_t token = 0; token < V; ++token) scores[token] = allowed[token] ? scores[token] : never;
}

ptrdiff_t behind_stop_string(const SamplingOptions& options, const History& history) {
  if (options.stop_strings.empty() || history.new_tokens() < options.constraints.min_new_tokens) return -1;
  size_t longest = 0;
  for (const std::string& stop : options.stop_strings) longest = std::max(longest, stop.size());
  const TokenTexts& texts = *options.token_texts;
  const auto piece = [&](ptrdiff_t t) {
    return texts.piece(t > 0 ? history.tokens[t - 1] : -1, history.tokens[t]);
  };
  ptrdiff_t t = history.count - 1;
  std::string text = piece(t);
  const size_t newest = text.size();
  while (t > history.prompt && text.size() < newest + longest - 1) text = piece(--t) + text;
  const size_t old = text.size() - newest;
  ptrdiff_t behind = -1;
  for (const std::string& stop : options.stop_strings) {
    // the first match that ends within the newest token
    const size_t at = text.find(stop, old + 1 > stop.size() ? old + 1 - stop.size() : 0);
    if (at != std::string::npos)
      behind = std::max(behind, static_cast<ptrdiff_t>(text.size() - at - stop.size()));
  }
  return behind;
}

template void constrain(const Constraints&, const History&, const bool*, ptrdiff_t, const float*, float*);
template void constrain(const Constraints&, const History&, const bool*, ptrdiff_t, const double*, double*);

}  // namespace fusedlstm
