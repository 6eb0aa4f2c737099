// Drawing and searching targets with a decoder with attention: the loops of every model on its rows.
#include "bindings/attention.h"
#include "bindings/beam.h"
#include "bindings/generation.h"

namespace fusedlstm {
namespace {

// The arguments that both loops have; every source begins with the start token.
template <class T>
struct Search {
  AttentionSources<T> sources;
  std::vector<int32_t> start;

  Search(const AttentionDecoder<T>& decoder, const char* function, const py::array& h0, const py::object& c0,
         const py::object& memory, const py::object& lengths, int32_t start_token)
      : sources(decoder, function, h0.ndim() == 3 ? h0.shape(1) : 0, memory, lengths, h0, c0),
        start(static_cast<size_t>(sources.N), start_token) {
    require(start_token >= 0 && start_token < decoder.vocabulary(), function,
            "start_token must lie in 0 .. " + std::to_string(decoder.vocabulary() - 1) + ", got " +
                std::to_string(start_token));
  }
};

PyGeneration generate_targets(const PyAttentionDecoder& self, const py::array& h0, const py::object& c0,
                              int32_t start_token, const std::shared_ptr<SamplingOptions>& options,
                              const py::object& seeds, const py::object& memory, const py::object& lengths,
                              const py::object& on_tokens, const py::object& processor,
                              const py::object& token_mask) {
  constexpr const char* function = "generate";
  return std::visit(
      [&](const auto& decoder) {
        using T = std::remove_cvref_t<decltype(*decoder->lstm().layers[0].bias.data())>;
        const Search<T> search(*decoder, function, h0, c0, memory, lengths, start_token);
        const ptrdiff_t N = search.sources.N;
        std::optional<AttentionRows<T>> rows;
        without_gil([&] { rows.emplace(search.sources.rows(N * options->num_sequences, python_poll())); });
        const std::vector<int32_t> ones(static_cast<size_t>(N), 1);
        return run_generation<T>(
            function, *rows, N, search.start.data(), ones.data(),
            {options, seeds, on_tokens, processor, token_mask}, [&](T* logits, const Poll& poll) {
              run_job(0, poll, [&](Team& team) { rows->step_share(team, N, search.start.data(), logits); });
            });
      },
      self.decoder);
}

py::tuple search_targets(const PyAttentionDecoder& self, const py::array& h0, const py::object& c0,
                         int32_t start_token, const PyBeamOptions& beam, const py::object& memory,
                         const py::object& lengths, const py::object& on_prefix) {
  constexpr const char* function = "beam_search";
  return std::visit(
      [&](const auto& decoder) {
        using T = std::remove_cvref_t<decltype(*decoder->lstm().layers[0].bias.data())>;
        const Search<T> search(*decoder, function, h0, c0, memory, lengths, start_token);
        const ptrdiff_t N = search.sources.N;
        check_beam_options(beam.options, N, decoder->vocabulary(), function);
        const auto callback = prefix_callback(on_prefix, function);
        std::vector<std::vector<Hypothesis<T>>> result;
        if (N > 0)
          without_gil([&] {
            const Poll poll = python_poll();
            AttentionRows<T> rows = search.sources.rows(N * beam.options.width, poll);
            result = beam_search<T>(rows, {N, nullptr, search.start.data(), nullptr, nullptr, callback},
                                    beam.options, poll);
          });
        return beam_arrays(result, beam.options);
      },
      self.decoder);
}

}  // namespace

void bind_attention_search(py::module_& m) {
  py::reinterpret_borrow<py::class_<PyAttentionDecoder>>(m.attr("AttentionDecoder"))
      .def("generate", &generate_targets, py::kw_only(), py::arg("h0"), py::arg("c0"), py::arg("start_token"),
           py::arg("options"), py::arg("seeds"), py::arg("memory") = py::none(),
           py::arg("memory_lengths") = py::none(), py::arg("on_tokens") = py::none(),
           py::arg("processor") = py::none(), py::arg("token_mask") = py::none())
      .def("beam_search", &search_targets, py::kw_only(), py::arg("h0"), py::arg("c0"),
           py::arg("start_token"), py::arg("options"), py::arg("memory") = py::none(),
           py::arg("memory_lengths") = py::none(), py::arg("on_prefix") = py::none());
}

}  // namespace fusedlstm
