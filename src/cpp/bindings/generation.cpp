#include "bindings/generation.h"

#include <cmath>

namespace fusedlstm {

void check_constraints(const Constraints& constraints, ptrdiff_t V, const char* function) {
  const auto check = [&](int32_t token, const char* argument) {
    require(token >= 0 && token < V, function,
            std::string(argument) + " must lie in 0 .. " + std::to_string(V - 1) + ", got " +
                std::to_string(token));
  };
  for (const int32_t token : constraints.banned_tokens) check(token, "banned_tokens");
  for (const int32_t token : constraints.stop_tokens) check(token, "stop_tokens");
  for (const auto& [index, token] : constraints.forced_tokens) check(token, "forced_tokens");
}

void check_options(const SamplingOptions& options, ptrdiff_t V, const char* function) {
  check_constraints(options.constraints, V, function);
  require(options.top_log_probabilities <= V, function,
          "top_log_probabilities must be at most V=" + std::to_string(V) + ", got " +
              std::to_string(options.top_log_probabilities));
  if (options.token_texts)
    require(static_cast<ptrdiff_t>(options.token_texts->text.size()) == V, function,
            "token_texts must have the texts of V=" + std::to_string(V) + " tokens, got " +
                std::to_string(options.token_texts->text.size()));
}

void check_callable(const py::object& object, const char* function, const char* argument) {
  if (!PyCallable_Check(object.ptr()))
    throw py::type_error(std::string(function) + ": " + argument + " must be callable, got " +
                         std::string(py::str(py::type::handle_of(object).attr("__name__"))));
}

py::object finish_name(Finish finish) {
  switch (finish) {
    case Finish::kNot:
      return py::none();
    case Finish::kLength:
      return py::str("length");
    case Finish::kStopToken:
      return py::str("stop_token");
    default:
      return py::str("stop_string");
  }
}

namespace {

constexpr const char* kOptions = "SamplingOptions";

std::shared_ptr<SamplingOptions> make_sampling_options(
    int64_t max_new_tokens, int64_t min_new_tokens, bool greedy, double temperature, int64_t top_k,
    double top_p, double min_p, double typical_p, double repetition_penalty, int64_t no_repeat_ngram_size,
    std::vector<int32_t> banned_tokens, std::map<int64_t, int32_t> forced_tokens,
    std::vector<int32_t> stop_tokens, std::vector<std::string> stop_strings,
    std::shared_ptr<TokenTexts> token_texts, int64_t num_sequences, int64_t top_log_probabilities) {
  const auto check = [](bool valid, const std::string& wanted, const py::object& got) {
    require(valid, kOptions, wanted + ", got " + std::string(py::repr(got)));
  };
  const auto check_number = [&](double value, bool valid, const char* wanted) {
    check(valid && std::isfinite(value), wanted, py::float_(value));
  };
  const auto check_count = [&](int64_t value, int64_t least, const std::string& name, int most = 30) {
    check(value >= least && value <= 1 << most,
          name + " must be >= " + std::to_string(least) + " and <= 2**" + std::to_string(most),
          py::int_(value));
  };
  check_count(max_new_tokens, 0, "max_new_tokens");
  check_count(min_new_tokens, 0, "min_new_tokens");
  check(min_new_tokens <= max_new_tokens,
        "min_new_tokens must be <= max_new_tokens = " + std::to_string(max_new_tokens),
        py::int_(min_new_tokens));
  check_number(temperature, temperature > 0,
               "temperature must be a finite number > 0 (greedy=True is the limit at 0)");
  check(top_k >= 0, "top_k must be >= 0 (0 keeps all)", py::int_(top_k));
  check_number(top_p, top_p > 0 && top_p <= 1, "top_p must be in (0, 1]");
  check_number(min_p, min_p >= 0 && min_p < 1, "min_p must be in [0, 1)");
  check_number(typical_p, typical_p > 0 && typical_p <= 1, "typical_p must be in (0, 1]");
  check_number(repetition_penalty, repetition_penalty > 0, "repetition_penalty must be a finite number > 0");
  check_count(no_repeat_ngram_size, 0, "no_repeat_ngram_size");
  check_count(num_sequences, 1, "num_sequences", 20);
  check_count(top_log_probabilities, 0, "top_log_probabilities");
  for (const auto& [index, token] : forced_tokens) {
    check(index >= 0 && index < max_new_tokens,
          "forced_tokens must have keys in [0, max_new_tokens = " + std::to_string(max_new_tokens) + ")",
          py::int_(index));
    check(std::find(banned_tokens.begin(), banned_tokens.end(), token) == banned_tokens.end(),
          "forced_tokens must not be banned", py::int_(token));
  }
  for (const std::string& stop : stop_strings)
    check(!stop.empty(), "stop_strings must not be empty", py::bytes(stop));
  check(stop_strings.empty() || token_texts, "token_texts must be given with stop_strings", py::none());
  return std::make_shared<SamplingOptions>(
      SamplingOptions{{repetition_penalty, no_repeat_ngram_size, min_new_tokens, std::move(banned_tokens),
                       std::move(forced_tokens), std::move(stop_tokens)},
                      max_new_tokens,
                      greedy,
                      temperature,
                      top_k,
                      top_p,
                      min_p,
                      typical_p,
                      std::move(stop_strings),
                      std::move(token_texts),
                      num_sequences,
                      top_log_probabilities});
}

std::shared_ptr<TokenTexts> make_texts(std::vector<std::string> texts, std::string separator,
                                       int32_t line_end) {
  require(line_end >= -1 && line_end < static_cast<int64_t>(texts.size()), "TokenTexts",
          "line_end must lie in -1 .. " + std::to_string(static_cast<int64_t>(texts.size()) - 1) + ", got " +
              std::to_string(line_end));
  return std::make_shared<TokenTexts>(TokenTexts{std::move(texts), std::move(separator), line_end});
}

}  // namespace

void bind_generation(py::module_& m) {
  py::class_<TokenTexts, std::shared_ptr<TokenTexts>> texts(m, "TokenTexts");
  texts.def(py::init(&make_texts), py::arg("texts"), py::kw_only(), py::arg("separator") = py::bytes(""),
            py::arg("line_end") = -1);

  py::class_<SamplingOptions, std::shared_ptr<SamplingOptions>> options(m, "SamplingOptions");
  options.def(py::init(&make_sampling_options), py::kw_only(), py::arg("max_new_tokens"),
              py::arg("min_new_tokens") = 0, py::arg("greedy") = false, py::arg("temperature") = 1.0,
              py::arg("top_k") = 0, py::arg("top_p") = 1.0, py::arg("min_p") = 0.0,
              py::arg("typical_p") = 1.0, py::arg("repetition_penalty") = 1.0,
              py::arg("no_repeat_ngram_size") = 0, py::arg("banned_tokens") = py::tuple(),
              py::arg("forced_tokens") = py::dict(), py::arg("stop_tokens") = py::tuple(),
              py::arg("stop_strings") = py::tuple(), py::arg("token_texts") = py::none(),
              py::arg("num_sequences") = 1, py::arg("top_log_probabilities") = 0);
  options.def_property_readonly("max_new_tokens", [](const SamplingOptions& o) { return o.max_new_tokens; });
  options.def_property_readonly("num_sequences", [](const SamplingOptions& o) { return o.num_sequences; });

  py::class_<PyGeneration> generation(m, "Generation");
  generation.def_property_readonly("tokens", [](const PyGeneration& g) { return g.tokens; });
  generation.def_property_readonly("lengths", [](const PyGeneration& g) { return g.lengths; });
  generation.def_property_readonly("log_probabilities",
                                   [](const PyGeneration& g) { return g.log_probabilities; });
  generation.def_property_readonly("top_tokens", [](const PyGeneration& g) { return g.top_tokens; });
  generation.def_property_readonly("top_log_probabilities",
                                   [](const PyGeneration& g) { return g.top_log_probabilities; });
  generation.def_property_readonly("finish", [](const PyGeneration& g) { return g.finish; });
  generation.def_property_readonly("behind", [](const PyGeneration& g) { return g.behind; });
  generation.def_property_readonly("states", [](const PyGeneration& g) { return g.states; });
}

}  // namespace fusedlstm
