#include "bindings/generation.h"
#include "bindings/objects.h"
#include "decode/language_model.h"

namespace fusedlstm {
namespace {

PyDecoder make_decoder(const PyPackedLSTM& lstm, const py::object& embedding_arg,
                       const PyPackedLinear& output) {
  constexpr const char* function = "LanguageModelDecoder";
  require(!lstm.lstm.shape.bidirectional, function, "lstm must have one direction, got a bidirectional one");
  require(lstm.lstm.type == variant_type(output.weights), function,
          std::string("output must be ") + type_name(lstm.lstm.type) + " as lstm, got " +
              type_name(variant_type(output.weights)));
  return with_type(lstm.lstm.type, [&](auto zero) {
    using T = decltype(zero);
    const auto& linear = output.get<T>();
    require(linear->inputs == lstm.lstm.shape.hidden_size, function,
            "output must take H=" + std::to_string(lstm.lstm.shape.hidden_size) + " inputs, got " +
                std::to_string(linear->inputs));
    const auto embedding = view<const T>(embedding_arg, function, "embedding",
                                         {{"V", linear->outputs}, {"I", lstm.lstm.shape.input_size}});
    std::shared_ptr<const LanguageModelDecoder<T>> decoder;
    without_gil(
        [&] { decoder = std::make_shared<LanguageModelDecoder<T>>(lstm.get<T>(), embedding.data, linear); });
    return PyDecoder{decoder};
  });
}

PyGeneration generate_tokens(const PyDecoder& self, const py::object& prompts_arg,
                             const py::object& lengths_arg, const std::shared_ptr<SamplingOptions>& options,
                             const py::object& seeds, const py::object& h0_arg, const py::object& c0_arg,
                             const py::object& on_tokens, const py::object& processor,
                             const py::object& token_mask) {
  constexpr const char* function = "generate";
  return std::visit(
      [&](const auto& decoder) {
        using T = std::remove_cvref_t<decltype(*decoder->embedding())>;
        const LstmShape& shape = decoder->shape();
        const auto lengths = view<const int32_t>(lengths_arg, function, "prompt_lengths", {{"N"}});
        const ptrdiff_t N = lengths.size();
        ptrdiff_t total = 0;
        for (ptrdiff_t b = 0; b < N; ++b) {
          require(lengths.data[b] >= 1, function,
                  "prompt_lengths must be at least 1, got " + std::to_string(lengths.data[b]) +
                      " at position " + std::to_string(b));
          total += lengths.data[b];
        }
        const auto prompts =
            view<const int32_t>(prompts_arg, function, "prompts", {{"sum(prompt_lengths)", total}});
        check_range(prompts, 0, decoder->vocabulary(), function, "prompts");
        const Dims state{{"L", shape.num_layers}, {"N", N}, {"H", shape.hidden_size}};
        const auto h0 = optional_view<const T>(h0_arg, function, "h0", state);
        const auto c0 = optional_view<const T>(c0_arg, function, "c0", state);
        check_hidden(decoder->lstm(), h0, function);
        view<const uint64_t>(seeds, function, "seeds", {{"R", N * options->num_sequences}});
        LanguageModelRows<T> rows(*decoder, N * options->num_sequences);
        return run_generation<T>(
            function, rows, N, prompts.data, lengths.data, {options, seeds, on_tokens, processor, token_mask},
            [&](T* logits, const Poll& poll) {
              rows.prefill(0, N, prompts.data, lengths.data, {h0.data, c0.data}, logits, poll);
            });
      },
      self.decoder);
}

}  // namespace

void bind_decode(py::module_& m) {
  py::class_<PyDecoder> decoder(m, "LanguageModelDecoder");
  decoder.def(py::init(&make_decoder), py::arg("lstm"), py::arg("embedding"), py::arg("output"));
  decoder.def_property_readonly("vocabulary_size", [](const PyDecoder& d) {
    return std::visit([](const auto& held) { return held->vocabulary(); }, d.decoder);
  });
  decoder.def_property_readonly("nbytes", [](const PyDecoder& d) {
    return std::visit([](const auto& held) { return held->bytes(); }, d.decoder);
  });
  decoder.def("generate", &generate_tokens, py::arg("prompts"), py::arg("prompt_lengths"), py::arg("options"),
              py::kw_only(), py::arg("seeds"), py::arg("h0") = py::none(), py::arg("c0") = py::none(),
              py::arg("on_tokens") = py::none(), py::arg("processor") = py::none(),
              py::arg("token_mask") = py::none());
}

}  // namespace fusedlstm
