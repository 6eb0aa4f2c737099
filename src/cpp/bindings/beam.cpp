#include "bindings/beam.h"

#include <cmath>

#include "bindings/objects.h"

namespace fusedlstm {
namespace {

constexpr const char* kFunction = "beam_search";
constexpr double kSteepest = 30;  // (2^30)^30 is still a double

PyBeamOptions make_beam_options(const py::object& width, const py::object& num_return,
                                const py::object& groups, const py::object& diversity_strength,
                                const py::object& max_new_tokens, const py::object& min_new_tokens,
                                const py::object& length_penalty, const py::object& length_penalty_form,
                                const py::object& early_stopping, const py::object& stop_tokens,
                                const py::object& banned_tokens, const py::object& forced_tokens,
                                const py::object& repetition_penalty,
                                const py::object& no_repeat_ngram_size) {
  using LengthPenalty = BeamOptions::LengthPenalty;
  using EarlyStopping = BeamOptions::EarlyStopping;
  const OptionReader read(kFunction);
  const auto is = [](const py::handle& value, const char* name) {
    return py::isinstance<py::str>(value) && value.cast<std::string>() == name;
  };
  BeamOptions o;
  o.width = read.integer(width, "width", 1, 1 << 16);
  o.num_return = read.integer(num_return, "num_return", 1, o.width);
  o.groups = read.integer(groups, "groups", 1, o.width);
  read.check(o.width % o.groups == 0, "groups must divide width=" + std::to_string(o.width), groups);
  o.diversity_strength = read.number(diversity_strength, "diversity_strength");
  read.check(o.diversity_strength >= 0 && std::isfinite(o.diversity_strength),
             "diversity_strength must be a finite number >= 0", diversity_strength);
  read.check(o.diversity_strength == 0 || o.groups > 1, "diversity_strength needs more than one group",
             diversity_strength);
  o.max_new_tokens = read.integer(max_new_tokens, "max_new_tokens", 1, kMostTokens);
  o.constraints = read.constraints(o.max_new_tokens, min_new_tokens, stop_tokens, banned_tokens,
                                   forced_tokens, repetition_penalty, no_repeat_ngram_size);
  o.length_penalty = read.number(length_penalty, "length_penalty");
  read.check(std::abs(o.length_penalty) <= kSteepest, "length_penalty must be a number in -30 .. 30",
             length_penalty);
  read.check(is(length_penalty_form, "plain") || is(length_penalty_form, "gnmt"),
             "length_penalty_form must be 'plain' or 'gnmt'", length_penalty_form);
  o.length_penalty_form = is(length_penalty_form, "gnmt") ? LengthPenalty::kGnmt : LengthPenalty::kPlain;
  read.check(PyBool_Check(early_stopping.ptr()) || is(early_stopping, "never"),
             "early_stopping must be True, False or 'never'", early_stopping);
  o.early_stopping = is(early_stopping, "never")       ? EarlyStopping::kNever
                     : early_stopping.ptr() == Py_True ? EarlyStopping::kTrue
                                                       : EarlyStopping::kFalse;
  return {o};
}

py::tuple search_language_model(const PyDecoder& self, const py::object& prompts_arg,
                                const py::object& lengths_arg, const PyBeamOptions& beam,
                                const py::object& h0_arg, const py::object& c0_arg,
                                const py::object& on_prefix) {
  return std::visit(
      [&](const auto& decoder) {
        using T = std::remove_cvref_t<decltype(*decoder->embedding())>;
        const LstmShape& shape = decoder->shape();
        const auto lengths = view<const int32_t>(lengths_arg, kFunction, "prompt_lengths", {{"N"}});
        const ptrdiff_t N = lengths.size();
        ptrdiff_t total = 0;
        for (ptrdiff_t n = 0; n < N; ++n) {
          require(lengths.data[n] >= 1, kFunction,
                  "prompt_lengths must be at least 1, got " + std::to_string(lengths.data[n]) +
                      " at position " + std::to_string(n));
          total += lengths.data[n];
        }
        const auto prompts =
            view<const int32_t>(prompts_arg, kFunction, "prompts", {{"sum(prompt_lengths)", total}});
        check_range(prompts, 0, decoder->vocabulary(), kFunction, "prompts");
        check_beam_options(beam.options, N, decoder->vocabulary(), kFunction);
        const Dims state{{"L", shape.num_layers}, {"N", N}, {"H", shape.hidden_size}};
        const auto h0 = optional_view<const T>(h0_arg, kFunction, "h0", state);
        const auto c0 = optional_view<const T>(c0_arg, kFunction, "c0", state);
        check_hidden(decoder->lstm(), h0, kFunction);
        const auto callback = prefix_callback(on_prefix, kFunction);
        std::vector<std::vector<Hypothesis<T>>> result;
        if (N > 0)
          without_gil([&] {
            const Poll poll = python_poll();
            LanguageModelRows<T> rows(*decoder, N * beam.options.width);
            Buffer<T> logits(N * decoder->vocabulary());
            rows.prefill(0, N, prompts.data, lengths.data, {h0.data, c0.data}, logits.data(), poll);
            result = beam_search<T>(rows, {N, logits.data(), nullptr, prompts.data, lengths.data, callback},
                                    beam.options, poll);
          });
        return beam_arrays(result, beam.options);
      },
      self.decoder);
}

}  // namespace

void bind_beam(py::module_& m) {
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      std::rethrow_exception(std::move(error));
    } catch (const NotNumbers& e) {
      PyErr_SetString(PyExc_FloatingPointError, (std::string(kFunction) + ": " + e.what()).c_str());
    }
  });
  const BeamOptions o;
  const Constraints& c = o.constraints;
  py::class_<PyBeamOptions>(m, "BeamOptions")
      .def(py::init(&make_beam_options), py::kw_only(), py::arg("width") = o.width,
           py::arg("num_return") = o.num_return, py::arg("groups") = o.groups,
           py::arg("diversity_strength") = o.diversity_strength, py::arg("max_new_tokens"),
           py::arg("min_new_tokens") = c.min_new_tokens, py::arg("length_penalty") = o.length_penalty,
           py::arg("length_penalty_form") = "plain", py::arg("early_stopping") = false,
           py::arg("stop_tokens") = py::tuple(), py::arg("banned_tokens") = py::tuple(),
           py::arg("forced_tokens") = py::dict(), py::arg("repetition_penalty") = c.repetition_penalty,
           py::arg("no_repeat_ngram_size") = c.no_repeat_ngram_size);
  py::reinterpret_borrow<py::class_<PyDecoder>>(m.attr("LanguageModelDecoder"))
      .def("beam_search", &search_language_model, py::arg("prompts"), py::arg("prompt_lengths"),
           py::arg("options"), py::kw_only(), py::arg("h0") = py::none(), py::arg("c0") = py::none(),
           py::arg("on_prefix") = py::none());
}

}  // namespace fusedlstm
