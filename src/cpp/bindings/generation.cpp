#include "bindings/generation.h"

#include <algorithm>
#include <cmath>
#include <limits>

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

void OptionReader::check(bool valid, const std::string& wanted, const py::handle& value) const {
  require(valid, function_, wanted + ", got " + std::string(py::repr(value)));
}

int64_t OptionReader::integer(const py::handle& value, const std::string& name, int64_t low, int64_t high,
                              const char* be) const {
  const std::string wanted =
      name + " must " + be + " in " + std::to_string(low) + " .. " + std::to_string(high);
  if (PyBool_Check(value.ptr()) || !PyIndex_Check(value.ptr()))
    throw py::type_error(std::string(function_) + ": " + wanted + ", got " + std::string(py::repr(value)));
  const auto whole = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!whole) throw py::error_already_set();
  int overflow = 0;
  const int64_t number = PyLong_AsLongLongAndOverflow(whole.ptr(), &overflow);
  check(!overflow && number >= low && number <= high, wanted, value);
  return number;
}

double OptionReader::number(const py::handle& value, const std::string& name) const {
  const PyNumberMethods* methods = Py_TYPE(value.ptr())->tp_as_number;
  if (PyBool_Check(value.ptr()) || !methods || !(methods->nb_float || methods->nb_index))
    throw py::type_error(std::string(function_) + ": " + name + " must be a number, got " +
                         std::string(py::repr(value)));
  const double x = PyFloat_AsDouble(value.ptr());
  if (x == -1 && PyErr_Occurred()) throw py::error_already_set();
  return x;
}

std::vector<int32_t> OptionReader::token_ids(const py::handle& value, const std::string& name) const {
  if (!py::isinstance<py::iterable>(value) || py::isinstance<py::str>(value))
    throw py::type_error(std::string(function_) + ": " + name + " must be token ids, got " +
                         std::string(py::repr(value)));
  std::vector<int32_t> ids;
  for (const py::handle id : value)
    ids.push_back(static_cast<int32_t>(integer(id, name, 0, std::numeric_limits<int32_t>::max())));
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

Constraints OptionReader::constraints(int64_t max_new_tokens, const py::handle& min_new_tokens,
                                      const py::handle& stop_tokens, const py::handle& banned_tokens,
                                      const py::handle& forced_tokens, const py::handle& repetition_penalty,
                                      const py::handle& no_repeat_ngram_size) const {
  Constraints c;
  c.min_new_tokens = integer(min_new_tokens, "min_new_tokens", 0, max_new_tokens);
  c.stop_tokens = token_ids(stop_tokens, "stop_tokens");
  c.banned_tokens = token_ids(banned_tokens, "banned_tokens");
  if (!py::isinstance<py::dict>(forced_tokens))
    throw py::type_error(std::string(function_) + ": forced_tokens must be a dict, got " +
                         std::string(py::repr(forced_tokens)));
  // A copy: another thread, or __index__ of what is in it, may change the caller's.
  const auto forced = py::reinterpret_steal<py::dict>(PyDict_Copy(forced_tokens.ptr()));
  if (!forced) throw py::error_already_set();
  for (const auto& [index, token] : forced) {
    const int64_t at = integer(index, "forced_tokens", 0, max_new_tokens - 1, "have keys that are ints");
    const int32_t id =
        static_cast<int32_t>(integer(token, "forced_tokens", 0, std::numeric_limits<int32_t>::max()));
    check(!std::binary_search(c.banned_tokens.begin(), c.banned_tokens.end(), id),
          "forced_tokens must not be banned", token);
    c.forced_tokens[at] = id;
  }
  c.repetition_penalty = number(repetition_penalty, "repetition_penalty");
  check(c.repetition_penalty > 0 && std::isfinite(c.repetition_penalty),
        "repetition_penalty must be a finite number > 0", repetition_penalty);
  c.no_repeat_ngram_size = integer(no_repeat_ngram_size, "no_repeat_ngram_size", 0, kMostTokens);
  return c;
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

std::shared_ptr<SamplingOptions> make_sampling_options(
    const py::object& max_new_tokens, const py::object& min_new_tokens, bool greedy,
    const py::object& temperature, const py::object& top_k, const py::object& top_p, const py::object& min_p,
    const py::object& typical_p, const py::object& repetition_penalty, const py::object& no_repeat_ngram_size,
    const py::object& banned_tokens, const py::object& forced_tokens, const py::object& stop_tokens,
    std::vector<std::string> stop_strings, std::shared_ptr<TokenTexts> token_texts,
    const py::object& num_sequences, const py::object& top_log_probabilities) {
  const OptionReader read("SamplingOptions");
  SamplingOptions o;
  o.max_new_tokens = read.integer(max_new_tokens, "max_new_tokens", 0, kMostTokens);
  o.constraints = read.constraints(o.max_new_tokens, min_new_tokens, stop_tokens, banned_tokens,
                                   forced_tokens, repetition_penalty, no_repeat_ngram_size);
  o.greedy = greedy;
  o.temperature = read.number(temperature, "temperature");
  read.check(o.temperature > 0 && std::isfinite(o.temperature),
             "temperature must be a finite number > 0 (greedy=True is the limit at 0)", temperature);
  o.top_k = read.integer(top_k, "top_k", 0, kMostTokens);
  o.top_p = read.number(top_p, "top_p");
  read.check(o.top_p > 0 && o.top_p <= 1, "top_p must be in (0, 1]", top_p);
  o.min_p = read.number(min_p, "min_p");
  read.check(o.min_p >= 0 && o.min_p < 1, "min_p must be in [0, 1)", min_p);
  o.typical_p = read.number(typical_p, "typical_p");
  read.check(o.typical_p > 0 && o.typical_p <= 1, "typical_p must be in (0, 1]", typical_p);
  for (const std::string& stop : stop_strings)
    read.check(!stop.empty(), "stop_strings must not be empty", py::bytes(stop));
  read.check(stop_strings.empty() || token_texts, "token_texts must be given with stop_strings", py::none());
  o.stop_strings = std::move(stop_strings);
  o.token_texts = std::move(token_texts);
  o.num_sequences = read.integer(num_sequences, "num_sequences", 1, 1 << 20);
  o.top_log_probabilities = read.integer(top_log_probabilities, "top_log_probabilities", 0, kMostTokens);
  return std::make_shared<SamplingOptions>(std::move(o));
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
