#include "decode/one_to_many.h"

#include "bindings/generation.h"
#include "bindings/objects.h"

namespace fusedlstm {
namespace {

template <class T>
void require_fits(const PackedWeights<T>& lstm, const PackedLinear<T>& output, const char* function) {
  require(!lstm.shape.bidirectional, function, "packed must have one direction, got a bidirectional one");
  require(lstm.compute == Compute::kFull && output.compute == Compute::kFull, function,
          "packed and output must be packed for the type of their parameters, got lower precision");
  require(output.inputs == lstm.shape.hidden_size, function,
          "output must take H=" + std::to_string(lstm.shape.hidden_size) + " inputs, got " +
              std::to_string(output.inputs));
}

// What training and generation share: an LSTM, an output layer, the first input and the states.
template <class T>
struct Arguments {
  const char* function;
  const PackedWeights<T>& lstm;
  const PackedLinear<T>& output;
  ptrdiff_t N, I, H, O;
  View<const T> first, h0, c0;
  Dims state;

  Arguments(const char* function_in, const PyPackedLSTM& packed, const PyPackedLinear& linear,
            const py::object& first_arg, const py::object& h0_arg, const py::object& c0_arg)
      : function(function_in),
        lstm(*packed.get<T>()),
        output(*linear.get<T>()),
        I(lstm.shape.input_size),
        H(lstm.shape.hidden_size),
        O(output.outputs) {
    require_fits(lstm, output, function);
    first = view<const T>(first_arg, function, "first", {{"N"}, {"I", I}});
    N = first.dim(0);
    state = {{"L", lstm.shape.num_layers}, {"N", N}, {"H", H}};
    h0 = optional_view<const T>(h0_arg, function, "h0", state);
    c0 = optional_view<const T>(c0_arg, function, "c0", state);
  }
  void require_same_size() const {
    require(I == O, function,
            "output must have I=" + std::to_string(I) + " outputs, which are the next input, got " +
                std::to_string(O));
  }
  std::vector<ptrdiff_t> state_shape() const { return {lstm.shape.num_layers, N, H}; }
};

void require_same_type(const PyPackedLSTM& packed, const PyPackedLinear& output, const char* function) {
  require(packed.lstm.type == variant_type(output.weights), function,
          std::string("output must be ") + type_name(packed.lstm.type) + " as packed, got " +
              type_name(variant_type(output.weights)));
}

py::tuple bind_train(const PyPackedLSTM& packed, const PyPackedLinear& output, const py::object& first,
                     const py::object& targets_arg, const py::object& h0, const py::object& c0,
                     const py::object& lengths_arg, const std::string& feedback, double teacher_probability,
                     const py::object& embedding_arg, double temperature, bool sample, double dropout,
                     uint64_t seed, bool need_outputs, const py::object& gradients_arg,
                     const py::object& d_weight_arg, const py::object& d_bias_arg,
                     const py::object& d_embedding_arg) {
  constexpr const char* function = "one_to_many";
  require_same_type(packed, output, function);
  return with_type(packed.lstm.type, [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    const Arguments<T> a(function, packed, output, first, h0, c0);
    const bool values = feedback == "output";
    require(values || feedback == "token" || feedback == "soft", function,
            "feedback must be 'output', 'token' or 'soft', got '" + feedback + "'");
    require(teacher_probability >= 0 && teacher_probability <= 1, function,
            "teacher_probability must lie in [0, 1], got " + std::to_string(teacher_probability));
    require(static_cast<T>(temperature) > 0 && T(1) / static_cast<T>(temperature) > 0 &&
                static_cast<T>(temperature) - static_cast<T>(temperature) == 0,
            function, "temperature must be positive, got " + std::to_string(temperature));
    require(!sample || feedback == "token", function,
            "sample needs feedback 'token', got '" + feedback + "'");
    View<const T> target_values, embedding;
    View<const int32_t> target_tokens;
    ptrdiff_t time = 0;
    if (values) {
      a.require_same_size();
      require(embedding_arg.is_none(), function,
              "embedding must be None with feedback 'output', got an array");
      target_values = view<const T>(targets_arg, function, "targets", {{"N", a.N}, {"T"}, {"O", a.O}});
      time = target_values.dim(1);
    } else {
      embedding = view<const T>(embedding_arg, function, "embedding", {{"V", a.O}, {"I", a.I}});
      target_tokens = view<const int32_t>(targets_arg, function, "targets", {{"N", a.N}, {"T"}});
      time = target_tokens.dim(1);
    }
    require(a.N <= (1 << 30) && time <= (1 << 30) && a.N * time < (ptrdiff_t{1} << 31), function,
            "N * T must be below 2^31, got N=" + std::to_string(a.N) + ", T=" + std::to_string(time));
    const auto lengths = optional_view<const int32_t>(lengths_arg, function, "lengths", {{"N", a.N}});
    check_range(lengths, 0, time + 1, function, "lengths");
    for (ptrdiff_t n = 0; target_tokens.data && n < a.N; ++n) {  // those past a length are never read
      for (ptrdiff_t t = 0; t < (lengths.data ? lengths.data[n] : time); ++t) {
        const int32_t id = target_tokens.data[n * time + t];
        require(id >= 0 && id < a.O, function,
                "targets must lie in 0 .. " + std::to_string(a.O - 1) + ", got " + std::to_string(id) +
                    " at (" + std::to_string(n) + ", " + std::to_string(t) + ")");
      }
    }
    const OneToManyRequest<T> request{.N = a.N,
                                      .time = time,
                                      .lengths = lengths.data,
                                      .first = a.first.data,
                                      .initial = {a.h0.data, a.c0.data},
                                      .target_values = target_values.data,
                                      .target_tokens = target_tokens.data,
                                      .embedding = embedding.data,
                                      .feedback = values                ? Feedback::kOutput
                                                  : feedback == "token" ? Feedback::kToken
                                                                        : Feedback::kSoft,
                                      .teacher_probability = teacher_probability,
                                      .temperature = static_cast<T>(temperature),
                                      .sample = sample,
                                      .dropout = check_rate<T>(dropout, function, "dropout"),
                                      .seed = seed};

    const bool backward = !gradients_arg.is_none();
    require(backward || (d_weight_arg.is_none() && d_bias_arg.is_none() && d_embedding_arg.is_none()),
            function, "d_weight, d_bias and d_embedding need gradients, got None");
    require(!backward || a.lstm.backward, function, "packed must be packed with backward=True");
    py::object y = py::none(), d_first = py::none(), dh0 = py::none(), dc0 = py::none();
    T* y_data = nullptr;
    if (need_outputs) {
      auto made = new_array<T>({a.N, time, a.O});
      y_data = made.mutable_data();
      y = made;
    }
    OneToManyGradients<T> gradients{};
    View<T> parameters, d_weight, d_bias, d_embedding;
    if (backward) {
      parameters = view<T>(gradients_arg, function, "gradients",
                           {{"parameters", parameter_count(a.lstm.shape)}}, true);
      d_weight = view<T>(d_weight_arg, function, "d_weight", {{"O", a.O}, {"H", a.H}}, true);
      d_bias = optional_view<T>(d_bias_arg, function, "d_bias", {{"O", a.O}}, true);
      require(!values || d_embedding_arg.is_none(), function,
              "d_embedding must be None with feedback 'output', got an array");
      if (!values)
        d_embedding = view<T>(d_embedding_arg, function, "d_embedding", {{"V", a.O}, {"I", a.I}}, true);
      auto first_made = new_array<T>({a.N, a.I}), h_made = new_array<T>(a.state_shape()),
           c_made = new_array<T>(a.state_shape());
      gradients = {parameters.data,           d_weight.data,         d_bias.data,          d_embedding.data,
                   first_made.mutable_data(), h_made.mutable_data(), c_made.mutable_data()};
      d_first = first_made;
      dh0 = h_made;
      dc0 = c_made;
    }
    double loss = 0;
    adding_to<T>({&parameters, &d_weight, &d_bias, &d_embedding}, [&](const Poll& poll) {
      loss = one_to_many<T>(a.lstm, a.output, request, y_data, backward ? &gradients : nullptr, poll);
    });
    return py::make_tuple(loss, y, d_first, dh0, dc0);
  });
}

py::tuple bind_generate(const PyPackedLSTM& packed, const PyPackedLinear& output, const py::object& first,
                        ptrdiff_t steps, const py::object& h0, const py::object& c0) {
  constexpr const char* function = "one_to_many_generate";
  require_same_type(packed, output, function);
  return with_type(packed.lstm.type, [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    const Arguments<T> a(function, packed, output, first, h0, c0);
    a.require_same_size();
    require(steps >= 0 && steps <= (1 << 30) && a.N <= (1 << 30), function,
            "steps must lie in 0 .. 2^30, got " + std::to_string(steps));
    auto y = new_array<T>({a.N, steps, a.O}), h_n = new_array<T>(a.state_shape()),
         c_n = new_array<T>(a.state_shape());
    T *const y_data = y.mutable_data(), *const h_data = h_n.mutable_data(),
             *const c_data = c_n.mutable_data();
    without_gil([&] {
      one_to_many_generate<T>(packed.get<T>(), a.output, a.N, steps, a.first.data, {a.h0.data, a.c0.data},
                              y_data, h_data, c_data, python_poll());
    });
    return py::make_tuple(y, h_n, c_n);
  });
}

struct PyTokenDecoder {
  EitherType<LanguageModelDecoder> decoder;
};

PyTokenDecoder make_token_decoder(const PyPackedLSTM& packed, const py::object& embedding_arg,
                                  const PyPackedLinear& output) {
  constexpr const char* function = "OneToManyDecoder";
  require_same_type(packed, output, function);
  return with_type(packed.lstm.type, [&](auto zero) {
    using T = decltype(zero);
    const auto& lstm = packed.get<T>();
    const auto& linear = output.get<T>();
    require_fits(*lstm, *linear, function);
    const auto embedding = view<const T>(embedding_arg, function, "embedding",
                                         {{"V", linear->outputs}, {"I", lstm->shape.input_size}});
    std::shared_ptr<const LanguageModelDecoder<T>> decoder;
    without_gil([&] { decoder = std::make_shared<LanguageModelDecoder<T>>(lstm, embedding.data, linear); });
    return PyTokenDecoder{decoder};
  });
}

PyGeneration generate_tokens(const PyTokenDecoder& self, const py::object& first_arg,
                             const std::shared_ptr<SamplingOptions>& options, const py::object& seeds,
                             const py::object& h0_arg, const py::object& c0_arg, const py::object& inputs_arg,
                             const py::object& on_tokens, const py::object& processor,
                             const py::object& token_mask) {
  constexpr const char* function = "OneToManyDecoder.generate";
  return std::visit(
      [&](const auto& decoder) {
        using T = std::remove_cvref_t<decltype(*decoder->embedding())>;
        const LstmShape& shape = decoder->shape();
        const auto first = view<const T>(first_arg, function, "first", {{"N"}, {"I", shape.input_size}});
        const ptrdiff_t N = first.dim(0);
        const Dims state{{"L", shape.num_layers}, {"N", N}, {"H", shape.hidden_size}};
        const auto h0 = optional_view<const T>(h0_arg, function, "h0", state);
        const auto c0 = optional_view<const T>(c0_arg, function, "c0", state);
        const auto inputs = optional_view<const int32_t>(inputs_arg, function, "inputs", {{"N", N}});
        if (inputs.data) check_range(inputs, 0, decoder->vocabulary(), function, "inputs");
        const std::vector<int32_t> seen(static_cast<size_t>(N), inputs.data ? 1 : 0);
        LanguageModelRows<T> rows(*decoder, N * options->num_sequences);
        return run_generation<T>(
            function, rows, N, inputs.data, seen.data(), {options, seeds, on_tokens, processor, token_mask},
            [&](T* logits, const Poll& poll) {
              one_to_many_begin<T>(*decoder, N, first.data, {h0.data, c0.data}, rows, logits, poll);
            });
      },
      self.decoder);
}

}  // namespace

void bind_one_to_many(py::module_& m) {
  py::class_<PyTokenDecoder> decoder(m, "OneToManyDecoder");
  decoder.def(py::init(&make_token_decoder), py::arg("packed"), py::arg("embedding"), py::arg("output"));
  decoder.def("generate", &generate_tokens, py::arg("first"), py::arg("options"), py::kw_only(),
              py::arg("seeds"), py::arg("h0") = py::none(), py::arg("c0") = py::none(),
              py::arg("inputs") = py::none(), py::arg("on_tokens") = py::none(),
              py::arg("processor") = py::none(), py::arg("token_mask") = py::none());
  m.def("one_to_many", &bind_train, py::arg("packed"), py::arg("output"), py::arg("first"),
        py::arg("targets"), py::arg("h0") = py::none(), py::arg("c0") = py::none(),
        py::arg("lengths") = py::none(), py::kw_only(), py::arg("feedback"),
        py::arg("teacher_probability") = 0.0, py::arg("embedding") = py::none(), py::arg("temperature") = 1.0,
        py::arg("sample") = false, py::arg("dropout") = 0.0, py::arg("seed") = 0,
        py::arg("need_outputs") = false, py::arg("gradients") = py::none(), py::arg("d_weight") = py::none(),
        py::arg("d_bias") = py::none(), py::arg("d_embedding") = py::none());
  m.def("one_to_many_generate", &bind_generate, py::arg("packed"), py::arg("output"), py::arg("first"),
        py::arg("steps"), py::arg("h0") = py::none(), py::arg("c0") = py::none());
}

}  // namespace fusedlstm
