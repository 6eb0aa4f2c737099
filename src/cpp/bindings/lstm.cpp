#include <pybind11/stl.h>

#include <optional>

#include "bindings/objects.h"
#include "runtime/finite.h"
#include "stream/stream.h"

namespace fusedlstm {
namespace {

constexpr ptrdiff_t kMaxSize = ptrdiff_t{1}
                               << 30;  // of one dimension: products of two stay far from overflow

PyLSTM make_lstm(ptrdiff_t input_size, ptrdiff_t hidden_size, ptrdiff_t num_layers, bool bidirectional,
                 bool bias, const std::string& dtype) {
  const auto check = [](const char* name, ptrdiff_t value, ptrdiff_t most) {
    require(
        value >= 1 && value <= most, "LSTM",
        std::string(name) + " must lie in 1 .. " + std::to_string(most) + ", got " + std::to_string(value));
  };
  check("input_size", input_size, 1 << 24);
  check("hidden_size", hidden_size, 1 << 16);
  check("num_layers", num_layers, 1024);
  return {{input_size, hidden_size, num_layers, bidirectional, bias}, parse_type(dtype, "LSTM")};
}

std::string describe(const PyLSTM& l) {
  return "LSTM(" + std::to_string(l.shape.input_size) + ", " + std::to_string(l.shape.hidden_size) +
         ", num_layers=" + std::to_string(l.shape.num_layers) +
         (l.shape.bidirectional ? ", bidirectional=True" : "") + (l.shape.bias ? "" : ", bias=False") +
         ", dtype='" + type_name(l.type) + "')";
}

// The arguments that forward has with and without a tape.
template <class T>
struct ForwardArguments {
  const char* function;
  LstmShape shape;
  ptrdiff_t N, time;
  View<const T> x, embedding, h0, c0;
  View<const int32_t> tokens, lengths;
  std::atomic<bool> not_finite{false};

  ForwardArguments(const char* function_in, const LstmShape& shape_in, const py::object& x_arg,
                   const py::object& h0_arg, const py::object& c0_arg, const py::object& lengths_arg,
                   const py::object& embedding_arg)
      : function(function_in), shape(shape_in) {
    if (embedding_arg.is_none()) {
      x = view<const T>(x_arg, function, "x", {{"N"}, {"T"}, {"I", shape.input_size}});
      N = x.dim(0), time = x.dim(1);
    } else {
      embedding = view<const T>(embedding_arg, function, "embedding", {{"V"}, {"I", shape.input_size}});
      tokens = view<const int32_t>(x_arg, function, "x", {{"N"}, {"T"}});
      N = tokens.dim(0), time = tokens.dim(1);
    }
    require(N <= kMaxSize && time <= kMaxSize, function, "x is too long");
    const Dims state{{"L*D", shape.num_layers * shape.directions()}, {"N", N}, {"H", shape.hidden_size}};
    h0 = optional_view<const T>(h0_arg, function, "h0", state);
    c0 = optional_view<const T>(c0_arg, function, "c0", state);
    lengths = optional_view<const int32_t>(lengths_arg, function, "lengths", {{"N", N}});
    check_range(lengths, 0, time + 1, function, "lengths");
    if (tokens.data) check_tokens();
    require(N * time < (ptrdiff_t{1} << 31), function,
            "N * T must be below 2^31, got " + std::to_string(N * time));
  }
  // With check_x it is found on the way whether x is finite; require_finite says so.
  LstmInput<T> input(bool check_x) {
    return {x.data, tokens.data, embedding.data, embedding.data ? embedding.dim(0) : 0,
            check_x ? &not_finite : nullptr};
  }
  void require_finite() const {
    if (!not_finite) return;
    PyErr_SetString(PyExc_FloatingPointError, (std::string(function) + ": x must be finite").c_str());
    throw py::error_already_set();
  }

 private:
  // Ids past a sequence's length are never read.
  void check_tokens() const {
    for (ptrdiff_t n = 0; n < N; ++n) {
      for (ptrdiff_t t = 0; t < (lengths.data ? lengths.data[n] : time); ++t) {
        const int32_t id = tokens.data[n * time + t];
        if (id >= 0 && id < embedding.dim(0)) continue;
        throw py::value_error(std::string(function) + ": x must lie in 0 .. " +
                              std::to_string(embedding.dim(0) - 1) + ", got " + std::to_string(id) +
                              " at position (" + std::to_string(n) + ", " + std::to_string(t) + ")");
      }
    }
  }
};

template <class T>
struct ForwardResult {
  py::array_t<T> y, h_n, c_n;
  explicit ForwardResult(const ForwardArguments<T>& a)
      : y(new_array<T>({a.N, a.time, a.shape.outputs()})),
        h_n(new_array<T>({a.shape.num_layers * a.shape.directions(), a.N, a.shape.hidden_size})),
        c_n(new_array<T>({a.shape.num_layers * a.shape.directions(), a.N, a.shape.hidden_size})) {}
  LstmOutputs<T> pointers() { return {y.mutable_data(), h_n.mutable_data(), c_n.mutable_data()}; }
};

// The same results as lstm_forward's, bit for bit.
template <class T>
void stepped_forward(const std::shared_ptr<const PackedWeights<T>>& weights, const ForwardArguments<T>& a,
                     const LstmOutputs<T>& out) {
  const ptrdiff_t H = weights->shape.hidden_size, layer_row = a.N * H;
  Stream<T> stream(weights, a.N);
  for (ptrdiff_t n = 0; n < a.N; ++n)
    stream.join(a.h0.data ? a.h0.data + n * H : nullptr, a.c0.data ? a.c0.data + n * H : nullptr, layer_row);
  stream.run(a.time, a.x.data, out.y, python_poll());
  for (ptrdiff_t n = 0; n < a.N; ++n) stream.save(n, out.h_n + n * H, out.c_n + n * H, layer_row);
}

py::tuple forward(const PyPackedLSTM& packed, const py::object& x, const py::object& h0, const py::object& c0,
                  const py::object& lengths, const py::object& embedding, bool check_x) {
  return with_type(packed.lstm.type, [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    ForwardArguments<T> a("lstm_forward", packed.lstm.shape, x, h0, c0, lengths, embedding);
    check_hidden(*packed.get<T>(), a.h0, a.function);
    ForwardResult<T> result(a);
    const LstmOutputs<T> out = result.pointers();
    without_gil([&] {
      if (a.x.data && !a.lengths.data && Stream<T>::pays(*packed.get<T>(), a.N, a.time)) {
        a.not_finite = check_x && !all_finite(a.x.data, a.x.size());
        return stepped_forward<T>(packed.get<T>(), a, out);
      }
      lstm_forward<T>(*packed.get<T>(), a.N, a.time, a.lengths.data, a.input(check_x), {a.h0.data, a.c0.data},
                      out, python_poll());
    });
    a.require_finite();
    return py::make_tuple(result.y, result.h_n, result.c_n);
  });
}

TapeMode tape_mode(const std::string& name) {
  if (name == "full") return TapeMode::kFull;
  if (name == "half") return TapeMode::kHalf;
  if (name == "lean") return TapeMode::kLean;
  throw py::value_error("lstm_forward_tape: tape must be 'full', 'half' or 'lean', got '" + name + "'");
}

py::tuple forward_tape(const PyPackedLSTM& packed, const py::object& x, const py::object& h0,
                       const py::object& c0, const py::object& lengths, const py::object& embedding,
                       double dropout, uint64_t seed, const std::string& mode_name, bool check_x) {
  const TapeMode mode = tape_mode(mode_name);
  require(std::string(compute_name(packed.weights)) != "int8", "lstm_forward_tape",
          "packed must be for training, got int8 weights, which are for inference");
  return with_type(packed.lstm.type, [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    ForwardArguments<T> a("lstm_forward_tape", packed.lstm.shape, x, h0, c0, lengths, embedding);
    const T rate = check_rate<T>(dropout, a.function, "dropout");
    ForwardResult<T> result(a);
    const LstmOutputs<T> out = result.pointers();
    auto tape = std::make_unique<PyTape>();
    without_gil([&] {
      tape->tape = lstm_forward_tape<T>(*packed.get<T>(), a.N, a.time, a.lengths.data, a.input(check_x),
                                        {a.h0.data, a.c0.data}, rate, seed, mode, out, python_poll());
    });
    a.require_finite();
    return py::make_tuple(result.y, result.h_n, result.c_n, std::move(tape));
  });
}

py::tuple backward(const PyPackedLSTM& packed, PyTape& py_tape, const py::object& dy_arg,
                   const py::object& dh_n_arg, const py::object& dc_n_arg, const py::object& gradients_arg,
                   const py::object& d_embedding_arg, bool need_dx) {
  constexpr const char* function = "lstm_backward";
  return with_type(packed.lstm.type, [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    auto* const held = std::get_if<std::unique_ptr<Tape<T>>>(&py_tape.tape);
    require(held && (*held)->shape == packed.lstm.shape, function,
            "tape must come from " + describe(packed.lstm) + ", got one of other sizes or type");
    require(packed.get<T>()->backward, function, "packed must be packed with backward=True");
    Tape<T>& tape = **held;
    const auto require_unused = [](bool unused) {
      if (!unused) throw std::runtime_error("lstm_backward: tape has been used: a tape serves one backward");
    };
    require_unused(!py_tape.backward.used());
    const LstmShape& shape = tape.shape;
    const ptrdiff_t N = tape.rows.batch(), time = tape.rows.time(),
                    states = shape.num_layers * shape.directions();
    const auto dy =
        optional_view<const T>(dy_arg, function, "dy", {{"N", N}, {"T", time}, {"D*H", shape.outputs()}});
    const Dims state{{"L*D", states}, {"N", N}, {"H", shape.hidden_size}};
    const auto dh_n = optional_view<const T>(dh_n_arg, function, "dh_n", state);
    const auto dc_n = optional_view<const T>(dc_n_arg, function, "dc_n", state);
    const auto gradients =
        view<T>(gradients_arg, function, "gradients", {{"parameters", parameter_count(shape)}}, true);
    require(d_embedding_arg.is_none() || tape.token_input, function,
            "d_embedding must be None for dense input, got an array");
    const auto d_embedding = optional_view<T>(d_embedding_arg, function, "d_embedding",
                                              {{"V", tape.tokens.vocabulary}, {"I", shape.input_size}}, true);
    py::object dx = py::none();
    T* dx_data = nullptr;
    if (need_dx && !tape.token_input) {
      auto array = new_array<T>({N, time, shape.input_size});
      dx_data = array.mutable_data();
      dx = array;
    }
    auto dh0 = new_array<T>({states, N, shape.hidden_size}),
         dc0 = new_array<T>({states, N, shape.hidden_size});
    const LstmGradients<T> out{gradients.data, d_embedding.data, dx_data, dh0.mutable_data(),
                               dc0.mutable_data()};
    require_unused(py_tape.backward.use());  // of several threads with the same tape, one
    adding_to<T>({&gradients, &d_embedding}, [&](const Poll& poll) {
      lstm_backward<T>(*packed.get<T>(), tape, dy.data, dh_n.data, dc_n.data, out, poll);
    });
    return py::make_tuple(dx, dh0, dc0);
  });
}

template <class T>
void require_single_layer(const PyPackedLSTM& packed, const char* function) {
  require(packed.lstm.shape.num_layers == 1 && !packed.lstm.shape.bidirectional, function,
          "packed must have one layer and one direction, got " + describe(packed.lstm));
  require(packed.get<T>()->compute == Compute::kFull, function,
          std::string("packed must be packed for ") + type_name(packed.lstm.type) + ", got " +
              compute_name(packed.weights));
}

py::tuple cell_forward(const PyPackedLSTM& packed, const py::object& x_arg, const py::object& h_arg,
                       const py::object& c_arg) {
  constexpr const char* function = "lstm_cell_forward";
  return with_type(packed.lstm.type, [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    require_single_layer<T>(packed, function);
    const ptrdiff_t H = packed.lstm.shape.hidden_size;
    const auto x = view<const T>(x_arg, function, "x", {{"N"}, {"I", packed.lstm.shape.input_size}});
    const ptrdiff_t N = x.dim(0);
    const auto h = view<const T>(h_arg, function, "h", {{"N", N}, {"H", H}});
    const auto c = view<const T>(c_arg, function, "c", {{"N", N}, {"H", H}});
    auto h_next = new_array<T>({N, H}), c_next = new_array<T>({N, H}), gates = new_array<T>({N, 4, H});
    T *const h_out = h_next.mutable_data(), *const c_out = c_next.mutable_data(),
             *const gates_out = gates.mutable_data();
    without_gil(
        [&] { lstm_cell_forward<T>(*packed.get<T>(), N, x.data, h.data, c.data, h_out, c_out, gates_out); });
    return py::make_tuple(h_next, c_next, gates);
  });
}

py::tuple cell_backward(const PyPackedLSTM& packed, const py::object& x_arg, const py::object& h_arg,
                        const py::object& c_arg, const py::object& c_next_arg, const py::object& gates_arg,
                        const py::object& dh_arg, const py::object& dc_arg, const py::object& gradients_arg) {
  constexpr const char* function = "lstm_cell_backward";
  return with_type(packed.lstm.type, [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    require_single_layer<T>(packed, function);
    require(packed.get<T>()->backward, function, "packed must be packed with backward=True");
    const LstmShape& shape = packed.lstm.shape;
    const ptrdiff_t H = shape.hidden_size;
    const auto x = view<const T>(x_arg, function, "x", {{"N"}, {"I", shape.input_size}});
    const ptrdiff_t N = x.dim(0);
    const Dims state{{"N", N}, {"H", H}};
    const auto h = view<const T>(h_arg, function, "h", state);
    const auto c = view<const T>(c_arg, function, "c", state);
    const auto c_next = view<const T>(c_next_arg, function, "c_next", state);
    const auto gates = view<const T>(gates_arg, function, "gates", {{"N", N}, {"4", 4}, {"H", H}});
    const auto dh = view<const T>(dh_arg, function, "dh", state);
    const auto dc = optional_view<const T>(dc_arg, function, "dc", state);
    const auto gradients = optional_view<T>(gradients_arg, function, "gradients",
                                            {{"parameters", parameter_count(shape)}}, true);
    auto dx = new_array<T>({N, shape.input_size}), dh_prev = new_array<T>({N, H}),
         dc_prev = new_array<T>({N, H});
    const CellGradients<T> out{dx.mutable_data(), dh_prev.mutable_data(), dc_prev.mutable_data(),
                               gradients.data};
    adding_to<T>({&gradients}, [&](const Poll&) {
      lstm_cell_backward<T>(*packed.get<T>(), N, x.data, h.data, c.data, c_next.data, gates.data, dh.data,
                            dc.data, out);
    });
    return py::make_tuple(dx, dh_prev, dc_prev);
  });
}

// A read-only view into the tape, which it keeps alive.
template <class T>
py::array tape_view(const py::object& self, const std::vector<ptrdiff_t>& shape,
                    std::vector<ptrdiff_t> strides, const T* data) {
  for (ptrdiff_t& stride : strides) stride *= static_cast<ptrdiff_t>(sizeof(T));
  py::array_t<T> array(shape, strides, data, self);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

enum class TapePart { kGates, kC, kH };

template <TapePart Part>
py::array tape_part(const py::object& self, ptrdiff_t layer, ptrdiff_t direction) {
  const PyTape& tape_object = self.cast<const PyTape&>();
  return std::visit(
      [&](const auto& tape) -> py::array {
        const LstmShape& s = tape->shape;
        require(
            layer >= 0 && layer < s.num_layers, "LSTMTape",
            "layer must lie in 0 .. " + std::to_string(s.num_layers - 1) + ", got " + std::to_string(layer));
        require(direction >= 0 && direction < s.directions(), "LSTMTape",
                "direction must lie in 0 .. " + std::to_string(s.directions() - 1) + ", got " +
                    std::to_string(direction));
        const auto& own = tape->layers[static_cast<size_t>(layer * s.directions() + direction)];
        const ptrdiff_t P = tape->rows.total(), N = tape->rows.batch(), H = s.hidden_size;
        if (Part != TapePart::kH && tape->mode != TapeMode::kFull)
          throw std::runtime_error(
              "LSTMTape: gates and c can be seen on a full tape only, this one is half or lean");
        if constexpr (Part == TapePart::kGates)
          return tape_view(self, {P, 4, H}, {tape->gates_pitch(), s.hidden_padded(), 1}, own.gates.data());
        else
          return tape_view(self, {P, H}, {tape->state_pitch(), 1},
                           (Part == TapePart::kC ? own.c.data() : own.h.data()) + N * tape->state_pitch());
      },
      tape_object.tape);
}

py::tuple tape_rows(const PyTape& tape_object) {
  return std::visit(
      [](const auto& tape) -> py::tuple {
        const Rows& rows = tape->rows;
        py::array_t<int32_t> n(rows.total()), t(rows.total());
        for (ptrdiff_t s = 0; s < rows.steps(); ++s) {
          for (ptrdiff_t slot = 0; slot < rows.active(s); ++slot) {
            n.mutable_at(rows.start(s) + slot) = static_cast<int32_t>(rows.sequence(slot));
            t.mutable_at(rows.start(s) + slot) = static_cast<int32_t>(s);
          }
        }
        return py::make_tuple(n, t);
      },
      tape_object.tape);
}

}  // namespace

void bind_lstm(py::module_& m) {
  py::class_<PyLSTM> lstm(m, "LSTM");
  py::class_<PyPackedLSTM> packed(m, "PackedLSTM");
  py::class_<PyTape> tape(m, "LSTMTape");

  lstm.def(py::init(&make_lstm), py::arg("input_size"), py::arg("hidden_size"), py::arg("num_layers") = 1,
           py::arg("bidirectional") = false, py::arg("bias") = true, py::arg("dtype") = "float32");
  lstm.def_property_readonly("input_size", [](const PyLSTM& l) { return l.shape.input_size; });
  lstm.def_property_readonly("hidden_size", [](const PyLSTM& l) { return l.shape.hidden_size; });
  lstm.def_property_readonly("num_layers", [](const PyLSTM& l) { return l.shape.num_layers; });
  lstm.def_property_readonly("bidirectional", [](const PyLSTM& l) { return l.shape.bidirectional; });
  lstm.def_property_readonly("bias", [](const PyLSTM& l) { return l.shape.bias; });
  lstm.def_property_readonly("dtype", [](const PyLSTM& l) { return type_name(l.type); });
  lstm.def_property_readonly("num_parameters", [](const PyLSTM& l) { return parameter_count(l.shape); });
  lstm.def("parameter_table", [](const PyLSTM& l) {
    py::list table;
    for (const NamedWeight& w : weight_table(l.shape))
      table.append(py::make_tuple(w.name, py::tuple(py::cast(w.shape)), w.offset));
    return table;
  });
  lstm.def(
      "pack",
      [](const PyLSTM& l, const py::object& parameters_arg, bool backward_too,
         const std::optional<std::string>& compute_dtype) {
        const Compute compute = parse_compute(compute_dtype, l.type,
                                              std::max(l.shape.input_size, l.shape.outputs()), "LSTM.pack");
        require(compute != Compute::kInt8 || !backward_too, "LSTM.pack",
                "compute_dtype 'int8' is for inference: backward must be False");
        return with_type(l.type, [&](auto zero) {
          using T = decltype(zero);
          const auto parameters = view<const T>(parameters_arg, "LSTM.pack", "parameters",
                                                {{"parameters", parameter_count(l.shape)}});
          std::shared_ptr<const PackedWeights<T>> weights;
          without_gil([&] {
            weights = std::make_shared<PackedWeights<T>>(
                pack_weights<T>(l.shape, parameters.data, backward_too, compute));
          });
          return PyPackedLSTM{l, weights};
        });
      },
      py::arg("parameters"), py::kw_only(), py::arg("backward") = true,
      py::arg("compute_dtype") = py::none());
  lstm.def("__repr__", &describe);

  packed.def_property_readonly("lstm", [](const PyPackedLSTM& p) { return p.lstm; });
  packed.def_property_readonly("isa", [](const PyPackedLSTM& p) {
    return std::visit([](const auto& w) { return std::string(w->level->name); }, p.weights);
  });
  packed.def_property_readonly("compute_dtype",
                               [](const PyPackedLSTM& p) { return compute_name(p.weights); });
  packed.def_property_readonly("nbytes", [](const PyPackedLSTM& p) {
    return std::visit([](const auto& w) { return w->bytes(); }, p.weights);
  });

  tape.def_property_readonly("consumed", [](const PyTape& t) { return t.backward.used(); });
  tape.def_property_readonly("nbytes", [](const PyTape& t) {
    return std::visit([](const auto& held) { return held->bytes(); }, t.tape);
  });
  tape.def_property_readonly("row_of", &tape_rows);
  tape.def("gates", &tape_part<TapePart::kGates>, py::arg("layer"), py::arg("direction") = 0);
  tape.def("c", &tape_part<TapePart::kC>, py::arg("layer"), py::arg("direction") = 0);
  tape.def("h", &tape_part<TapePart::kH>, py::arg("layer"), py::arg("direction") = 0);

  // Those of layers are called by position: names cost a small layer a tenth of its time.
  m.def("lstm_forward", &forward, py::arg("packed"), py::arg("x"), py::arg("h0") = py::none(),
        py::arg("c0") = py::none(), py::arg("lengths") = py::none(), py::arg("embedding") = py::none(),
        py::arg("check_x") = false);
  m.def("lstm_forward_tape", &forward_tape, py::arg("packed"), py::arg("x"), py::arg("h0") = py::none(),
        py::arg("c0") = py::none(), py::arg("lengths") = py::none(), py::arg("embedding") = py::none(),
        py::arg("dropout") = 0.0, py::arg("seed") = 0, py::arg("tape") = "full", py::arg("check_x") = false);
  m.def("lstm_backward", &backward, py::arg("packed"), py::arg("tape"), py::arg("dy"), py::arg("dh_n"),
        py::arg("dc_n"), py::arg("gradients"), py::arg("d_embedding") = py::none(),
        py::arg("need_dx") = true);
  m.def("lstm_cell_forward", &cell_forward, py::arg("packed"), py::arg("x"), py::arg("h"), py::arg("c"));
  m.def("lstm_cell_backward", &cell_backward, py::arg("packed"), py::arg("x"), py::arg("h"), py::arg("c"),
        py::arg("c_next"), py::arg("gates"), py::arg("dh"), py::arg("dc") = py::none(), py::kw_only(),
        py::arg("gradients") = py::none());
}

}  // namespace fusedlstm
