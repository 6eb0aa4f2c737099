// Beam search between Python and any model that steps rows: options, callback, result.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "bindings/generation.h"
#include "decode/beam.h"

namespace fusedlstm {

struct PyBeamOptions {
  BeamOptions options;
};

// The ids of the options exist, and the rows can be counted.
inline void check_beam_options(const BeamOptions& options, ptrdiff_t N, ptrdiff_t V, const char* function) {
  check_constraints(options.constraints, V, function);
  require(N <= std::numeric_limits<int32_t>::max() / options.width, function,
          "N times width must be below 2^31, got " + std::to_string(N) + " times " +
              std::to_string(options.width));
}

// on_prefix(source, ids, ended) in Python, or nothing for None. The object must outlive the callback.
inline std::function<void(ptrdiff_t, const std::vector<int32_t>&, bool)> prefix_callback(
    const py::object& on_prefix, const char* function) {
  if (on_prefix.is_none()) return {};
  check_callable(on_prefix, function, "on_prefix");
  return [&on_prefix](ptrdiff_t source, const std::vector<int32_t>& ids, bool ended) {
    wait_if_finalizing();
    const py::gil_scoped_acquire gil;
    on_prefix(source, tokens_array(ids), ended);
  };
}

// tokens (N, R, T), lengths (N, R), scores (N, R), log-probabilities (N, R, T) for the R = num_return best;
// T is the longest length. Past a length -1 and 0; a hypothesis that does not exist has length 0 and score
// -inf.
template <class T>
py::tuple beam_arrays(const std::vector<std::vector<Hypothesis<T>>>& result, const BeamOptions& options) {
  const ptrdiff_t N = static_cast<ptrdiff_t>(result.size()), R = options.num_return;
  ptrdiff_t longest = 0;
  for (const auto& best : result)
    for (const Hypothesis<T>& one : best)
      longest = std::max(longest, static_cast<ptrdiff_t>(one.tokens.size()));
  auto tokens = new_array<int32_t>({N, R, longest});
  auto lengths = new_array<int32_t>({N, R});
  auto scores = new_array<T>({N, R});
  auto log_probability = new_array<T>({N, R, longest});
  std::fill_n(tokens.mutable_data(), tokens.size(), -1);
  std::fill_n(lengths.mutable_data(), lengths.size(), 0);
  std::fill_n(scores.mutable_data(), scores.size(), -std::numeric_limits<T>::infinity());
  std::fill_n(log_probability.mutable_data(), log_probability.size(), T(0));
  for (ptrdiff_t n = 0; n < N; ++n) {
    ptrdiff_t place = n * R;
    for (const Hypothesis<T>& one : result[static_cast<size_t>(n)]) {
      std::copy(one.tokens.begin(), one.tokens.end(), tokens.mutable_data() + place * longest);
      std::copy(one.log_probability.begin(), one.log_probability.end(),
                log_probability.mutable_data() + place * longest);
      lengths.mutable_data()[place] = static_cast<int32_t>(one.tokens.size());
      scores.mutable_data()[place++] = static_cast<T>(one.score);
    }
  }
  return py::make_tuple(tokens, lengths, scores, log_probability);
}

}  // namespace fusedlstm
