#include "bindings/attention.h"

#include "decode/attention_training.h"

namespace fusedlstm {
namespace {

struct PyAttentionTape {
  std::variant<std::unique_ptr<AttentionTape<float>>, std::unique_ptr<AttentionTape<double>>> tape;
  Once backward;
};

constexpr ptrdiff_t kMaxSize = ptrdiff_t{1} << 30;

Attention parse_kind(const std::string& name) {
  if (name == "none") return Attention::kNone;
  if (name == "dot") return Attention::kDot;
  if (name == "general") return Attention::kGeneral;
  if (name == "concat") return Attention::kConcat;
  if (name == "bahdanau") return Attention::kBahdanau;
  throw py::value_error(
      "PackedAttention: kind must be 'none', 'dot', 'general', 'concat' or 'bahdanau', got '" + name + "'");
}

PyPackedAttention make_attention(const std::string& kind_name, ptrdiff_t memory_size, ptrdiff_t hidden_size,
                                 const std::string& dtype, const py::object& output_arg,
                                 const py::object& key_arg, const py::object& query_arg,
                                 const py::object& v_arg, const py::object& coverage_arg) {
  constexpr const char* function = "PackedAttention";
  const Attention kind = parse_kind(kind_name);
  const bool none = kind == Attention::kNone, dot = kind == Attention::kDot;
  require(memory_size >= (none ? 0 : 1) && memory_size <= (none ? 0 : 1 << 20), function,
          "memory_size must lie in 1 .. 2^20, or be 0 without attention, got " + std::to_string(memory_size));
  require(hidden_size >= 1 && hidden_size <= 1 << 16, function,
          "hidden_size must lie in 1 .. 65536, got " + std::to_string(hidden_size));
  require(!dot || memory_size == hidden_size, function,
          "memory_size must be hidden_size with 'dot', got " + std::to_string(memory_size) + " and " +
              std::to_string(hidden_size));
  return with_type(parse_type(dtype, function), [&](auto zero) {
    using T = decltype(zero);
    auto packed = std::make_shared<PackedAttention<T>>();
    packed->kind = kind;
    packed->M = memory_size;
    packed->H = hidden_size;
    packed->O = hidden_size;
    packed->level = &current_level();
    const auto given = [&](const py::object& object, const char* name, bool wanted) {
      require(
          object.is_none() != wanted, function,
          std::string(name) + (wanted ? " must be given with '" : " must be None with '") + kind_name + "'");
      return wanted;
    };
    View<const T> output, key, query, v, coverage;
    const Dim A{"A", kind == Attention::kGeneral ? hidden_size : ptrdiff_t{-1}};
    if (given(output_arg, "output", !none))
      output = view<const T>(output_arg, function, "output", {{"O"}, {"M+H", memory_size + hidden_size}});
    if (given(key_arg, "key", !none && !dot))
      key = view<const T>(key_arg, function, "key", {A, {"M", memory_size}});
    packed->A = none ? 0 : dot ? memory_size : key.dim(0);
    if (given(query_arg, "query", packed->additive()))
      query = view<const T>(query_arg, function, "query", {{"A", packed->A}, {"H", hidden_size}});
    if (given(v_arg, "v", packed->additive())) v = view<const T>(v_arg, function, "v", {{"A", packed->A}});
    require(coverage_arg.is_none() || packed->additive(), function,
            "coverage must be None with '" + kind_name + "', whose scores are not additive");
    coverage = optional_view<const T>(coverage_arg, function, "coverage", {{"A", packed->A}});
    require(none || (packed->A >= 1 && output.dim(0) >= 1), function, "weights must not be empty");
    without_gil([&] {
      if (output.data)
        packed->output = pack_linear<T>(output.dim(0), memory_size + hidden_size, output.data, nullptr);
      if (key.data) packed->key = pack_linear<T>(packed->A, memory_size, key.data, nullptr);
      if (query.data) packed->query = pack_linear<T>(packed->A, hidden_size, query.data, nullptr);
      for (auto [from, to] : {std::pair{&v, &packed->v}, std::pair{&coverage, &packed->coverage}}) {
        *to = Buffer<T>(from->data ? packed->A : 0);
        if (from->data) std::copy_n(from->data, packed->A, to->data());
      }
    });
    if (output.data) packed->O = output.dim(0);
    return PyPackedAttention{std::shared_ptr<const PackedAttention<T>>(std::move(packed))};
  });
}

// How many values a step feeds back beside those it is given, when all parts fit together.
template <class T>
ptrdiff_t checked_fed(const char* function, const PackedWeights<T>& lstm, const PackedAttention<T>& attention,
                      bool input_feeding) {
  const LstmShape& shape = lstm.shape;
  require(attention.H == shape.hidden_size, function,
          "attention must be for H=" + std::to_string(shape.hidden_size) + " hidden units, got " +
              std::to_string(attention.H));
  const bool luong = !attention.none() && attention.kind != Attention::kBahdanau;
  require(!input_feeding || luong, function,
          "input_feeding must be False without attention and with 'bahdanau', whose context is fed");
  const ptrdiff_t fed = fed_columns(attention, input_feeding);
  require(fed < shape.input_size, function,
          "lstm must take the " + std::to_string(fed) + " values fed back beside x, got input_size " +
              std::to_string(shape.input_size));
  return fed;
}

py::tuple forward(const PyPackedLSTM& lstm, const PyPackedAttention& py_attention, const py::object& x_arg,
                  const py::object& memory_arg, const py::object& memory_lengths_arg,
                  const py::object& lengths_arg, const py::object& h0_arg, const py::object& c0_arg,
                  bool input_feeding, double dropout, uint64_t seed, const py::object& embedding_arg,
                  const PyPackedLinear* output, const py::object& probability_arg, bool sample) {
  constexpr const char* function = "attention_decoder_forward";
  const LstmShape& shape = lstm.lstm.shape;
  require(!shape.bidirectional, function, "lstm must have one direction, got a bidirectional one");
  require(variant_type(py_attention.attention) == lstm.lstm.type, function,
          std::string("attention must be ") + type_name(lstm.lstm.type) + " as lstm, got " +
              type_name(variant_type(py_attention.attention)));
  return with_type(lstm.lstm.type, [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    const auto& packed = lstm.get<T>();
    const auto& attention = py_attention.get<T>();
    require(packed->compute != Compute::kInt8, function,
            "lstm must be for training, got int8 weights, which are for inference");
    const ptrdiff_t fed = checked_fed<T>(function, *packed, *attention, input_feeding);
    const bool none = attention->none();
    const ptrdiff_t E = shape.input_size - fed;
    const auto x = view<const T>(x_arg, function, "x", {{"N"}, {"T"}, {"E", E}});
    const ptrdiff_t N = x.dim(0), time = x.dim(1);
    require(N <= kMaxSize && time <= kMaxSize && N * time < (ptrdiff_t{1} << 31), function,
            "N * T must be below 2^31, got " + std::to_string(N) + " * " + std::to_string(time));
    View<const T> memory;
    View<const int32_t> memory_lengths;
    if (none) {
      require(memory_arg.is_none() && memory_lengths_arg.is_none(), function,
              "memory and memory_lengths must be None without attention");
    } else {
      memory = view<const T>(memory_arg, function, "memory", {{"N", N}, {"S"}, {"M", attention->M}});
      memory_lengths = view<const int32_t>(memory_lengths_arg, function, "memory_lengths", {{"N", N}});
      check_range(memory_lengths, 1, memory.dim(1) + 1, function, "memory_lengths");
      require(N * memory.dim(1) < (ptrdiff_t{1} << 31), function, "N * S must be below 2^31");
    }
    const auto lengths = optional_view<const int32_t>(lengths_arg, function, "lengths", {{"N", N}});
    check_range(lengths, 0, time + 1, function, "lengths");
    const Dims state{{"L", shape.num_layers}, {"N", N}, {"H", shape.hidden_size}};
    const auto h0 = optional_view<const T>(h0_arg, function, "h0", state);
    const auto c0 = optional_view<const T>(c0_arg, function, "c0", state);
    View<const T> embedding;
    View<const double> probability;
    ScheduledSampling<T> scheduled{.sample = sample};
    if (!embedding_arg.is_none() || output || !probability_arg.is_none()) {
      require(output != nullptr, function, "output must be given with embedding and probability");
      require(variant_type(output->weights) == lstm.lstm.type, function,
              std::string("output must be ") + type_name(lstm.lstm.type) + " as lstm");
      const auto& linear = output->get<T>();
      require(linear->inputs == attention->O, function,
              "output must take O=" + std::to_string(attention->O) + " inputs, got " +
                  std::to_string(linear->inputs));
      embedding = view<const T>(embedding_arg, function, "embedding", {{"V", linear->outputs}, {"E", E}});
      probability = view<const double>(probability_arg, function, "probability", {{"N", N}, {"T", time}});
      for (ptrdiff_t j = 0; j < probability.size(); ++j)
        require(probability.data[j] >= 0 && probability.data[j] <= 1, function,
                "probability must lie in [0, 1], got " + std::to_string(probability.data[j]));
      scheduled = {embedding.data, linear, probability.data, sample};
    }
    const T rate = check_rate<T>(dropout, function, "dropout");
    auto y = new_array<T>({N, time, attention->O});
    const std::vector<ptrdiff_t> state_shape{shape.num_layers, N, shape.hidden_size};
    auto h_n = new_array<T>(state_shape), c_n = new_array<T>(state_shape);
    py::object tokens = py::none();
    int32_t* tokens_data = nullptr;
    if (embedding.data) {
      auto array = new_array<int32_t>({N, time});
      tokens_data = array.mutable_data();
      tokens = array;
    }
    const AttentionOutputs<T> out{y.mutable_data(), h_n.mutable_data(), c_n.mutable_data(), tokens_data};
    const AttentionBatch<T> batch{N,
                                  time,
                                  none ? 0 : memory.dim(1),
                                  lengths.data,
                                  x.data,
                                  memory.data,
                                  memory_lengths.data,
                                  {h0.data, c0.data},
                                  input_feeding,
                                  rate,
                                  seed,
                                  scheduled};
    auto tape = std::make_unique<PyAttentionTape>();
    without_gil([&] {
      tape->tape = std::make_unique<AttentionTape<T>>(packed, attention, batch, out, python_poll());
    });
    return py::make_tuple(y, h_n, c_n, tokens, std::move(tape));
  });
}

py::tuple backward(PyAttentionTape& py_tape, const py::object& memory_arg, const py::object& dy_arg,
                   const py::object& dh_n_arg, const py::object& dc_n_arg, const py::object& lstm_arg,
                   const py::object& output_arg, const py::object& key_arg, const py::object& query_arg,
                   const py::object& v_arg, const py::object& coverage_arg) {
  constexpr const char* function = "attention_decoder_backward";
  return std::visit(
      [&](auto& held) -> py::tuple {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(held->lstm().layers[0].bias.data())>>;
        AttentionTape<T>& tape = *held;
        const LstmShape& shape = tape.lstm().shape;
        const PackedAttention<T>& attention = tape.attention();
        require(tape.lstm().backward, function, "lstm must have been packed with backward=True");
        const auto require_unused = [](bool unused) {
          if (!unused)
            throw std::runtime_error(
                "attention_decoder_backward: tape has been used: a tape serves one backward");
        };
        require_unused(!py_tape.backward.used());
        const ptrdiff_t N = tape.rows().batch(), time = tape.rows().time(), S = tape.longest_source(),
                        M = attention.M, H = attention.H, A = attention.A, O = attention.O;
        const auto dy = view<const T>(dy_arg, function, "dy", {{"N", N}, {"T", time}, {"O", O}});
        const Dims state{{"L", shape.num_layers}, {"N", N}, {"H", H}};
        const auto dh_n = optional_view<const T>(dh_n_arg, function, "dh_n", state);
        const auto dc_n = optional_view<const T>(dc_n_arg, function, "dc_n", state);
        const auto lstm = view<T>(lstm_arg, function, "lstm", {{"parameters", parameter_count(shape)}}, true);
        const auto weight = [&](const py::object& object, const char* name, bool there, const Dims& dims) {
          if (there) return view<T>(object, function, name, dims, true);
          require(object.is_none(), function, std::string(name) + " must be None: there is no such weight");
          return View<T>{};
        };
        const bool none = attention.none();
        View<const T> memory;
        if (none)
          require(memory_arg.is_none(), function, "memory must be None without attention");
        else
          memory = view<const T>(memory_arg, function, "memory", {{"N", N}, {"S", S}, {"M", M}});
        const auto output = weight(output_arg, "output", !none, {{"O", O}, {"M+H", M + H}});
        const auto key =
            weight(key_arg, "key", !none && attention.kind != Attention::kDot, {{"A", A}, {"M", M}});
        const auto query = weight(query_arg, "query", attention.additive(), {{"A", A}, {"H", H}});
        const auto v = weight(v_arg, "v", attention.additive(), {{"A", A}});
        const auto coverage = weight(coverage_arg, "coverage", attention.covers(), {{"A", A}});
        auto dx = new_array<T>({N, time, tape.inputs()});
        const std::vector<ptrdiff_t> state_shape{shape.num_layers, N, H};
        auto dh0 = new_array<T>(state_shape), dc0 = new_array<T>(state_shape);
        py::object d_memory = py::none();
        T* d_memory_data = nullptr;
        if (!none) {
          auto array = new_array<T>({N, S, M});
          d_memory_data = array.mutable_data();
          d_memory = array;
        }
        const AttentionGradients<T> gradients{
            lstm.data,     output.data,       key.data,      query.data,         v.data,
            coverage.data, dx.mutable_data(), d_memory_data, dh0.mutable_data(), dc0.mutable_data()};
        require_unused(py_tape.backward.use());  // of several threads with the same tape, one
        adding_to<T>({&lstm, &output, &key, &query, &v, &coverage}, [&](const Poll& poll) {
          tape.backward(dy.data, dh_n.data, dc_n.data, memory.data, gradients, poll);
        });
        return py::make_tuple(dx, d_memory, dh0, dc0);
      },
      py_tape.tape);
}

py::object tape_weights(const PyAttentionTape& py_tape) {
  return std::visit(
      [](const auto& tape) -> py::object {
        using T = std::remove_cvref_t<decltype(*tape->lstm().layers[0].bias.data())>;
        if (tape->attention().none()) return py::none();
        auto weights = new_array<T>({tape->rows().batch(), tape->rows().time(), tape->longest_source()});
        tape->copy_weights(weights.mutable_data());
        return weights;
      },
      py_tape.tape);
}

PyAttentionDecoder make_attention_decoder(const PyPackedLSTM& lstm, const PyPackedAttention& py_attention,
                                          const py::object& embedding_arg, const PyPackedLinear& output,
                                          bool input_feeding) {
  constexpr const char* function = "AttentionDecoder";
  const LstmShape& shape = lstm.lstm.shape;
  require(!shape.bidirectional, function, "lstm must have one direction, got a bidirectional one");
  const Type type = lstm.lstm.type;
  require(variant_type(py_attention.attention) == type && variant_type(output.weights) == type, function,
          std::string("attention and output must be ") + type_name(type) + " as lstm");
  return with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const auto& packed = lstm.get<T>();
    const auto& attention = py_attention.get<T>();
    const auto& linear = output.get<T>();
    const ptrdiff_t fed = checked_fed<T>(function, *packed, *attention, input_feeding);
    require(linear->inputs == attention->O, function,
            "output must take O=" + std::to_string(attention->O) + " inputs, got " +
                std::to_string(linear->inputs));
    const auto embedding = view<const T>(embedding_arg, function, "embedding",
                                         {{"V", linear->outputs}, {"E", shape.input_size - fed}});
    std::shared_ptr<const AttentionDecoder<T>> decoder;
    without_gil([&] {
      decoder =
          std::make_shared<AttentionDecoder<T>>(packed, attention, input_feeding, embedding.data, linear);
    });
    return PyAttentionDecoder{decoder};
  });
}

// Given tokens fed step by step, as a generation feeds its own: logits (N, T, V), or what the output layer
// reads (N, T, O), and attention weights (N, T, S).
template <bool kLogits>
py::tuple decoder_steps(const PyAttentionDecoder& self, const py::object& tokens_arg,
                        const py::object& memory_arg, const py::object& lengths_arg, const py::object& h0_arg,
                        const py::object& c0_arg) {
  constexpr const char* function = kLogits ? "AttentionDecoder.logits" : "AttentionDecoder.outputs";
  return std::visit(
      [&](const auto& decoder) -> py::tuple {
        using T = std::remove_cvref_t<decltype(*decoder->lstm().layers[0].bias.data())>;
        const auto tokens = view<const int32_t>(tokens_arg, function, "tokens", {{"N"}, {"T"}});
        const ptrdiff_t N = tokens.dim(0), time = tokens.dim(1), V = decoder->vocabulary(),
                        O = kLogits ? V : decoder->attention().O;
        check_range(tokens, 0, V, function, "tokens");
        const AttentionSources<T> sources(*decoder, function, N, memory_arg, lengths_arg, h0_arg, c0_arg);
        auto outputs = new_array<T>({N, time, O});
        auto weights = new_array<T>({N, time, sources.S});
        T *const outputs_data = outputs.mutable_data(), *const weights_data = weights.mutable_data();
        if (N > 0)
          without_gil([&] {
            const Poll poll = python_poll();
            AttentionRows<T> rows = sources.rows(N, poll);
            std::vector<int32_t> step(static_cast<size_t>(N));
            Buffer<T> logits(N * V);
            run_job(0, poll, [&](Team& team) {
              for (ptrdiff_t t = 0; t < time; ++t) {
                if (team.thread() == 0)
                  for (ptrdiff_t n = 0; n < N; ++n) step[static_cast<size_t>(n)] = tokens.data[n * time + t];
                team.barrier();
                rows.step_share(team, N, step.data(), logits.data());
                for (ptrdiff_t n = team.thread(); n < N; n += team.threads()) {
                  std::copy_n(kLogits ? logits.data() + n * V : rows.output(n), O,
                              outputs_data + (n * time + t) * O);
                  if (sources.S > 0)
                    std::copy_n(rows.weights(n), sources.S, weights_data + (n * time + t) * sources.S);
                }
                team.barrier();
              }
            });
          });
        return py::make_tuple(outputs, decoder->attention().none() ? py::object(py::none()) : weights);
      },
      self.decoder);
}

}  // namespace

void bind_attention(py::module_& m) {
  py::class_<PyPackedAttention>(m, "PackedAttention")
      .def(py::init(&make_attention), py::arg("kind"), py::arg("memory_size"), py::arg("hidden_size"),
           py::kw_only(), py::arg("dtype"), py::arg("output") = py::none(), py::arg("key") = py::none(),
           py::arg("query") = py::none(), py::arg("v") = py::none(), py::arg("coverage") = py::none());
  py::class_<PyAttentionTape>(m, "AttentionTape")
      .def_property_readonly("weights", &tape_weights)
      .def_property_readonly("nbytes", [](const PyAttentionTape& tape) {
        return std::visit([](const auto& held) { return held->bytes(); }, tape.tape);
      });
  py::class_<PyAttentionDecoder>(m, "AttentionDecoder")
      .def(py::init(&make_attention_decoder), py::arg("lstm"), py::arg("attention"), py::arg("embedding"),
           py::arg("output"), py::arg("input_feeding"))
      .def_property_readonly("vocabulary_size",
                             [](const PyAttentionDecoder& d) {
                               return std::visit([](const auto& held) { return held->vocabulary(); },
                                                 d.decoder);
                             })
      .def_property_readonly("nbytes",
                             [](const PyAttentionDecoder& d) {
                               return std::visit([](const auto& held) { return held->bytes(); }, d.decoder);
                             })
      .def("logits", &decoder_steps<true>, py::arg("tokens"), py::arg("memory"), py::arg("memory_lengths"),
           py::kw_only(), py::arg("h0") = py::none(), py::arg("c0") = py::none())
      .def("outputs", &decoder_steps<false>, py::arg("tokens"), py::arg("memory"), py::arg("memory_lengths"),
           py::kw_only(), py::arg("h0") = py::none(), py::arg("c0") = py::none());
  m.def("attention_decoder_forward", &forward, py::arg("lstm"), py::arg("attention"), py::arg("x"),
        py::arg("memory"), py::arg("memory_lengths"), py::kw_only(), py::arg("lengths") = py::none(),
        py::arg("h0") = py::none(), py::arg("c0") = py::none(), py::arg("input_feeding") = false,
        py::arg("dropout") = 0.0, py::arg("seed") = 0, py::arg("embedding") = py::none(),
        py::arg("output") = py::none(), py::arg("probability") = py::none(), py::arg("sample") = false);
  m.def("attention_decoder_backward", &backward, py::arg("tape"), py::arg("memory"), py::arg("dy"),
        py::arg("dh_n"), py::arg("dc_n"), py::arg("lstm"), py::kw_only(), py::arg("output") = py::none(),
        py::arg("key") = py::none(), py::arg("query") = py::none(), py::arg("v") = py::none(),
        py::arg("coverage") = py::none());
}

}  // namespace fusedlstm
