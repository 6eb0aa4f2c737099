#include "bindings/objects.h"
#include "decode/generate.h"
#include "decode/language_model.h"

namespace fusedlstm {
namespace {

struct PyDecoder {
  EitherType<LanguageModelDecoder> decoder;
};

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

py::tuple generate_tokens(const PyDecoder& self, const py::object& prompts_arg, const py::object& lengths_arg,
                          ptrdiff_t max_new_tokens, const py::object& seeds_arg, bool greedy,
                          double temperature, int64_t top_k, double top_p, int32_t stop_token,
                          const py::object& h0_arg, const py::object& c0_arg, const py::object& on_tokens) {
  constexpr const char* function = "generate";
  return std::visit(
      [&](const auto& decoder) -> py::tuple {
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
        const auto seeds = view<const uint64_t>(seeds_arg, function, "seeds", {{"N", N}});
        require(max_new_tokens >= 0 && max_new_tokens <= (1 << 30), function,
                "max_new_tokens must lie in 0 .. 2^30, got " + std::to_string(max_new_tokens));
        require(temperature > 0 && temperature - temperature == 0, function,
                "temperature must be positive, got " + std::to_string(temperature));
        require(top_k >= 0, function, "top_k must be at least 0 (0: all), got " + std::to_string(top_k));
        require(top_p > 0 && top_p <= 1, function, "top_p must lie in (0, 1], got " + std::to_string(top_p));
        require(stop_token >= -1 && stop_token < decoder->vocabulary(), function,
                "stop_token must lie in -1 .. " + std::to_string(decoder->vocabulary() - 1) + ", got " +
                    std::to_string(stop_token));
        const Dims state{{"L", shape.num_layers}, {"N", N}, {"H", shape.hidden_size}};
        const auto h0 = optional_view<const T>(h0_arg, function, "h0", state);
        const auto c0 = optional_view<const T>(c0_arg, function, "c0", state);
        check_hidden(decoder->lstm(), h0, function);
        std::function<void(const int32_t*)> callback;
        if (!on_tokens.is_none()) {
          if (!PyCallable_Check(on_tokens.ptr()))
            throw py::type_error("generate: on_tokens must be callable, got " +
                                 std::string(py::str(py::type::handle_of(on_tokens).attr("__name__"))));
          callback = [&on_tokens, N](const int32_t* ids) {
            wait_if_finalizing();
            const py::gil_scoped_acquire gil;
            on_tokens(py::array_t<int32_t>(N, ids));
          };
        }
        auto tokens = new_array<int32_t>({N, max_new_tokens});
        auto counts = new_array<int32_t>({N});
        auto log_probabilities = new_array<T>({N, max_new_tokens});
        const std::vector<ptrdiff_t> state_shape{shape.num_layers, N, shape.hidden_size};
        auto h = new_array<T>(state_shape), c = new_array<T>(state_shape);
        const GenerationRequest<T> request{
            N, {greedy, temperature, top_k, top_p}, seeds.data, stop_token, max_new_tokens, callback};
        without_gil([&] {
          const Poll poll = python_poll();
          LanguageModelRows<T> rows(*decoder, N);
          Buffer<T> logits(N * decoder->vocabulary());
          const ptrdiff_t L = shape.num_layers, H = shape.hidden_size;
          Buffer<T> both(rows.state_size());
          T *const h_n = h.mutable_data(), *const c_n = c.mutable_data();
          const GenerationResult<T> result{
              tokens.mutable_data(), counts.mutable_data(), log_probabilities.mutable_data(),
              [&](ptrdiff_t b, ptrdiff_t row) {
                rows.save(row, both.data());
                for (ptrdiff_t layer = 0; layer < L; ++layer) {
                  std::copy_n(both.data() + layer * H, H, h_n + (layer * N + b) * H);
                  std::copy_n(both.data() + (L + layer) * H, H, c_n + (layer * N + b) * H);
                }
              }};
          if (N > 0) rows.prefill(0, N, prompts.data, lengths.data, {h0.data, c0.data}, logits.data(), poll);
          fusedlstm::generate<T>(rows, logits.data(), request, result, poll);
        });
        return py::make_tuple(tokens, counts, log_probabilities, h, c);
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
  decoder.def("generate", &generate_tokens, py::arg("prompts"), py::arg("prompt_lengths"), py::kw_only(),
              py::arg("max_new_tokens"), py::arg("seeds"), py::arg("greedy") = false,
              py::arg("temperature") = 1.0, py::arg("top_k") = 0, py::arg("top_p") = 1.0,
              py::arg("stop_token") = -1, py::arg("h0") = py::none(), py::arg("c0") = py::none(),
              py::arg("on_tokens") = py::none());
}

}  // namespace fusedlstm
