// What every model's generate has in common: options, hooks in Python, and the arrays of the result.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bindings/support.h"
#include "decode/generate.h"

namespace fusedlstm {

constexpr int64_t kMostTokens = int64_t{1} << 30;

// Options from Python, each by itself: a TypeError or ValueError names function and option, and says what was
// wanted and what came.
class OptionReader {
 public:
  explicit OptionReader(const char* function) : function_(function) {}

  void check(bool valid, const std::string& wanted, const py::handle& value) const;
  int64_t integer(const py::handle& value, const std::string& name, int64_t low, int64_t high,
                  const char* be = "be an int") const;
  double number(const py::handle& value, const std::string& name) const;
  std::vector<int32_t> token_ids(const py::handle& value, const std::string& name) const;  // ascending
  Constraints constraints(int64_t max_new_tokens, const py::handle& min_new_tokens,
                          const py::handle& stop_tokens, const py::handle& banned_tokens,
                          const py::handle& forced_tokens, const py::handle& repetition_penalty,
                          const py::handle& no_repeat_ngram_size) const;

 private:
  const char* function_;
};

struct GenerationArguments {
  std::shared_ptr<const SamplingOptions> options;
  py::object seeds, on_tokens, processor, token_mask;
};

// Python's `Generation`.
struct PyGeneration {
  py::object tokens, lengths, log_probabilities, top_tokens, top_log_probabilities, finish, behind, states;
};

// Every token id of the constraints in 0 .. V - 1.
void check_constraints(const Constraints& constraints, ptrdiff_t V, const char* function);
// The same, and a text for each token if there are stop strings.
void check_options(const SamplingOptions& options, ptrdiff_t V, const char* function);
void check_callable(const py::object& object, const char* function, const char* argument);
py::object finish_name(Finish finish);  // None, "length", "stop_token" or "stop_string"

inline py::array_t<int32_t> tokens_array(const std::vector<int32_t>& tokens) {
  return py::array_t<int32_t>(static_cast<ptrdiff_t>(tokens.size()), tokens.data());
}

// (ids (rows,), tokens so far of each row) as Python's hooks get them
template <class T>
py::tuple hook_arguments(const typename Hooks<T>::Sequences& sequences) {
  py::array_t<int64_t> ids(static_cast<ptrdiff_t>(sequences.size()));
  py::tuple tokens(sequences.size());
  for (size_t j = 0; j < sequences.size(); ++j) {
    ids.mutable_at(j) = sequences[j].id;
    tokens[j] = tokens_array(sequences[j].tokens);
  }
  return py::make_tuple(ids, tokens);
}

// The hooks of one call. The Python objects must outlive them.
template <class T>
Hooks<T> python_hooks(const char* function, ptrdiff_t V, const py::object& processor,
                      const py::object& token_mask) {
  Hooks<T> hooks;
  using Sequences = typename Hooks<T>::Sequences;
  if (!processor.is_none()) {
    check_callable(processor, function, "processor");
    hooks.processor = [&processor, V](const Sequences& sequences, T* scores) {
      wait_if_finalizing();
      const py::gil_scoped_acquire gil;
      const ptrdiff_t rows = static_cast<ptrdiff_t>(sequences.size());
      const py::tuple arguments = hook_arguments<T>(sequences);
      auto logits = new_array<T>({rows, V});
      std::copy_n(scores, rows * V, logits.mutable_data());
      const py::object returned = processor(arguments[0], arguments[1], logits);
      const py::object& changed = returned.is_none() ? static_cast<const py::object&>(logits) : returned;
      const auto result =
          view<const T>(changed, "processor", "the returned logits", {{"rows", rows}, {"V", V}});
      std::copy_n(result.data, rows * V, scores);
    };
  }
  if (!token_mask.is_none()) {
    check_callable(token_mask, function, "token_mask");
    hooks.token_mask = [&token_mask, V](const Sequences& sequences, bool* allowed) {
      wait_if_finalizing();
      const py::gil_scoped_acquire gil;
      const ptrdiff_t rows = static_cast<ptrdiff_t>(sequences.size());
      const py::tuple arguments = hook_arguments<T>(sequences);
      const py::object returned = token_mask(arguments[0], arguments[1]);
      const auto result =
          view<const bool>(returned, "token_mask", "the returned mask", {{"rows", rows}, {"V", V}});
      std::copy_n(result.data, rows * V, allowed);
    };
  }
  return hooks;
}

// Rows 0 .. N - 1 become prompts by prefill(logits (N, V), poll); the loop continues them. rows has room for
// N options.num_sequences; prompts, lengths: what the model is fed, one prompt after the other.
template <class T, class Prefill>
PyGeneration run_generation(const char* function, StepRows<T>& rows, ptrdiff_t N, const int32_t* prompts,
                            const int32_t* lengths, const GenerationArguments& arguments,
                            const Prefill& prefill) {
  const SamplingOptions& options = *arguments.options;
  const ptrdiff_t V = rows.vocabulary(), R = N * options.num_sequences, most = options.max_new_tokens,
                  top = options.top_log_probabilities;
  ptrdiff_t state_row = 0;
  for (ptrdiff_t n = 0; n < N; ++n) state_row = std::max(state_row, rows.state_size(n));
  check_options(options, V, function);
  const auto seeds = view<const uint64_t>(arguments.seeds, function, "seeds", {{"R", R}});
  GenerationRequest<T> request{
      N,          prompts,
      lengths,    arguments.options,
      seeds.data, python_hooks<T>(function, V, arguments.processor, arguments.token_mask),
      nullptr};
  if (!arguments.on_tokens.is_none()) {
    check_callable(arguments.on_tokens, function, "on_tokens");
    request.on_tokens = [&arguments, R](const int32_t* ids, const int32_t* ended) {
      wait_if_finalizing();
      const py::gil_scoped_acquire gil;
      arguments.on_tokens(py::array_t<int32_t>(R, ids), py::array_t<int32_t>(R, ended));
    };
  }
  auto tokens = new_array<int32_t>({R, most}), counts = new_array<int32_t>({R}),
       top_tokens = new_array<int32_t>({R, most, top}), behind = new_array<int32_t>({R});
  auto log_probabilities = new_array<T>({R, most}), top_log_probabilities = new_array<T>({R, most, top}),
       states = new_array<T>({R, state_row});
  std::vector<Finish> finish(static_cast<size_t>(R));
  const GenerationResult<T> result{tokens.mutable_data(),
                                   counts.mutable_data(),
                                   log_probabilities.mutable_data(),
                                   top_tokens.mutable_data(),
                                   top_log_probabilities.mutable_data(),
                                   finish.data(),
                                   behind.mutable_data(),
                                   states.mutable_data(),
                                   state_row};
  without_gil([&] {
    const Poll poll = python_poll();
    Buffer<T> logits(N * V);
    if (N > 0) prefill(logits.data(), poll);
    generate<T>(rows, logits.data(), request, result, poll);
  });
  py::tuple reasons(finish.size());
  for (size_t r = 0; r < finish.size(); ++r) reasons[r] = finish_name(finish[r]);
  return {tokens, counts, log_probabilities, top_tokens, top_log_probabilities, reasons, behind, states};
}

}  // namespace fusedlstm
