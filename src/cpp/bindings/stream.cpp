#include "stream/stream.h"

#include <fusedlstm/stream.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings/objects.h"

namespace fusedlstm {
namespace {

// What Python's object, its capsules and its output arrays hold together.
template <class T>
struct SharedStream {
  Stream<T> stream;
  Buffer<T> y;  // (capacity, H)
  fusedlstm_stream_v1 host;
  std::atomic_flag busy;

  SharedStream(std::shared_ptr<const PackedWeights<T>> weights, ptrdiff_t capacity)
      : stream(std::move(weights), capacity),
        y(Buffer<T>::zeros(capacity * stream.shape().hidden_size)),
        host{.version = 1,
             .dtype = std::is_same_v<T, float> ? FUSEDLSTM_FLOAT32 : FUSEDLSTM_FLOAT64,
             .input_size = stream.shape().input_size,
             .hidden_size = stream.shape().hidden_size,
             .num_layers = stream.shape().num_layers,
             .capacity = capacity,
             .stream = this,
             .step = &host_step,
             .reset = &host_reset} {}

  static int host_step(void* self, int64_t rows, const void* x, void* out) {
    auto& s = *static_cast<SharedStream*>(self);
    const Turn turn(s.busy);
    if (!turn.mine()) return FUSEDLSTM_STREAM_BUSY;
    if (rows != s.stream.rows()) return FUSEDLSTM_STREAM_ROWS;
    s.stream.step(static_cast<const T*>(x), s.host.input_size, static_cast<T*>(out), s.host.hidden_size);
    return FUSEDLSTM_STREAM_OK;
  }
  static int host_reset(void* self, int64_t row) {
    auto& s = *static_cast<SharedStream*>(self);
    const Turn turn(s.busy);
    if (!turn.mine()) return FUSEDLSTM_STREAM_BUSY;
    if (row < 0 || row >= s.stream.rows()) return FUSEDLSTM_STREAM_ROWS;
    s.stream.restore(row, nullptr, nullptr);
    return FUSEDLSTM_STREAM_OK;
  }
};

template <class T>
py::capsule owner_of(const std::shared_ptr<SharedStream<T>>& shared) {
  return py::capsule(new std::shared_ptr<SharedStream<T>>(shared),
                     [](void* p) { delete static_cast<std::shared_ptr<SharedStream<T>>*>(p); });
}

class PyStream {
 public:
  virtual ~PyStream() = default;
  virtual const char* dtype() const = 0;
  virtual LstmShape shape() const = 0;
  virtual ptrdiff_t capacity() const = 0;
  virtual py::tuple ids() const = 0;
  virtual py::capsule capsule() const = 0;
  virtual int64_t join(const py::object& state) = 0;
  virtual void leave(int64_t id) = 0;
  virtual void reset(std::optional<int64_t> id) = 0;
  virtual py::tuple save(std::optional<int64_t> id) = 0;
  virtual void restore(const py::object& state, std::optional<int64_t> id) = 0;
  virtual int64_t fork(int64_t id) = 0;
  virtual PyObject* step(PyObject* x) = 0;  // a new reference
  virtual py::array run(const py::object& block) = 0;
};

template <class T>
class TypedStream final : public PyStream {
 public:
  TypedStream(const std::shared_ptr<const PackedWeights<T>>& weights, ptrdiff_t capacity)
      : shared_(std::make_shared<SharedStream<T>>(weights, capacity)),
        I_(weights->shape.input_size),
        H_(weights->shape.hidden_size) {
    rows_changed();
  }
  const char* dtype() const override { return std::is_same_v<T, float> ? "float32" : "float64"; }
  LstmShape shape() const override { return shared_->stream.shape(); }
  ptrdiff_t capacity() const override { return shared_->stream.capacity(); }
  py::tuple ids() const override {
    const Turn turn(shared_->busy, "Stream.ids", "stream");
    return py::tuple(py::cast(shared_->stream.ids()));
  }
  py::capsule capsule() const override {
    const py::capsule owner = owner_of(shared_);
    PyObject* const made = PyCapsule_New(&shared_->host, FUSEDLSTM_STREAM_CAPSULE, [](PyObject* capsule) {
      Py_DECREF(static_cast<PyObject*>(PyCapsule_GetContext(capsule)));
    });
    if (!made) throw py::error_already_set();
    PyCapsule_SetContext(made, owner.inc_ref().ptr());
    return py::reinterpret_steal<py::capsule>(made);
  }

  int64_t join(const py::object& state) override {
    const Turn turn(shared_->busy, "Stream.join", "stream");
    return add_row("Stream.join", State(state, "Stream.join", shape()));
  }
  void leave(int64_t id) override {
    const Turn turn(shared_->busy, "Stream.leave", "stream");
    shared_->stream.leave(row_of(id, "Stream.leave"));
    rows_changed();
  }
  void reset(std::optional<int64_t> id) override {
    const Turn turn(shared_->busy, "Stream.reset", "stream");
    if (id) return shared_->stream.restore(row_of(id, "Stream.reset"), nullptr, nullptr);
    for (ptrdiff_t row = 0; row < shared_->stream.rows(); ++row)
      shared_->stream.restore(row, nullptr, nullptr);
  }
  py::tuple save(std::optional<int64_t> id) override {
    const Turn turn(shared_->busy, "Stream.save", "stream");
    return save_row(row_of(id, "Stream.save"));
  }
  void restore(const py::object& state_arg, std::optional<int64_t> id) override {
    const Turn turn(shared_->busy, "Stream.restore", "stream");
    const State state(state_arg, "Stream.restore", shape());
    shared_->stream.restore(row_of(id, "Stream.restore"), state.h.data, state.c.data);
  }
  int64_t fork(int64_t id) override {
    const Turn turn(shared_->busy, "Stream.fork", "stream");
    return add_row("Stream.fork", State(save_row(row_of(id, "Stream.fork")), "Stream.fork", shape()));
  }

  PyObject* step(PyObject* x_arg) override {
    const Turn turn(shared_->busy, "Stream.step", "stream");
    const ptrdiff_t rows = shared_->stream.rows();
    const auto* const a = py::detail::array_proxy(x_arg);
    constexpr int plain =
        py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    const T* x;
    bool one_row;
    // An ordinary array of the right shape is seen by its fields; anything else goes the way of all
    // arguments.
    if (Py_TYPE(x_arg) == array_type_ && a->descr == dtype_.ptr() && (a->flags & plain) == plain &&
        ((a->nd == 1 && rows == 1 && a->dimensions[0] == I_) ||
         (a->nd == 2 && a->dimensions[0] == rows && a->dimensions[1] == I_))) {
      x = reinterpret_cast<const T*>(a->data);
      one_row = a->nd == 1;
    } else {
      one_row = rows == 1 && py::isinstance<py::array>(x_arg) &&
                py::reinterpret_borrow<py::array>(x_arg).ndim() == 1;
      x = view<const T>(x_arg, "Stream.step", "x",
                        one_row ? Dims{{"I", I_}} : Dims{{"rows", rows}, {"I", I_}})
              .data;
    }
    shared_->stream.step(x, I_, shared_->y.data(), H_);
    return (one_row ? y_row_ : y_rows_).inc_ref().ptr();
  }

  py::array run(const py::object& block) override {
    const Turn turn(shared_->busy, "Stream.run", "stream");
    Stream<T>& stream = shared_->stream;
    const ptrdiff_t rows = stream.rows();
    const bool one_row =
        rows == 1 && py::isinstance<py::array>(block) && py::reinterpret_borrow<py::array>(block).ndim() == 2;
    const auto x = view<const T>(block, "Stream.run", "block",
                                 one_row ? Dims{{"T"}, {"I", I_}} : Dims{{"rows", rows}, {"T"}, {"I", I_}});
    const ptrdiff_t steps = x.dim(one_row ? 0 : 1);
    auto y = one_row ? new_array<T>({steps, H_}) : new_array<T>({rows, steps, H_});
    T* const out = y.mutable_data();
    const double flops =
        2.0 * static_cast<double>(rows * steps) * static_cast<double>(parameter_count(shape()));
    if (flops < 1e6)  // some 20 us: giving the interpreter away and taking it back would cost as much
      stream.run(steps, x.data, out, nullptr);
    else
      without_gil([&] { stream.run(steps, x.data, out, python_poll()); });
    return y;
  }

 private:
  struct State {
    View<const T> h, c;
    State(const py::handle& pair, const char* function, const LstmShape& shape) {
      if (pair.is_none()) return;
      if (!py::isinstance<py::tuple>(pair) || py::len(pair) != 2)
        throw py::type_error(std::string(function) + ": state must be a pair (h, c), got " +
                             std::string(py::str(py::type::handle_of(pair).attr("__name__"))));
      const auto both = py::reinterpret_borrow<py::tuple>(pair);
      const Dims dims{{"L", shape.num_layers}, {"H", shape.hidden_size}};
      h = view<const T>(both[0], function, "h", dims);
      c = view<const T>(both[1], function, "c", dims);
    }
  };

  ptrdiff_t row_of(std::optional<int64_t> id, const char* function) const {
    const std::vector<int64_t>& all = shared_->stream.ids();
    if (!id) {
      require(
          all.size() == 1, function,
          "id must be given unless there is one row, got None with " + std::to_string(all.size()) + " rows");
      return 0;
    }
    for (size_t row = 0; row < all.size(); ++row)
      if (all[row] == *id) return static_cast<ptrdiff_t>(row);
    throw py::value_error(std::string(function) + ": id must be one of " +
                          std::string(py::repr(py::cast(all))) + ", got " + std::to_string(*id));
  }
  int64_t add_row(const char* function, const State& state) {
    const ptrdiff_t rows = shared_->stream.rows();
    require(rows < capacity(), function,
            "capacity must exceed the " + std::to_string(rows) + " rows in use, got " +
                std::to_string(capacity()));
    const int64_t id = shared_->stream.join(state.h.data, state.c.data);
    rows_changed();
    return id;
  }
  py::tuple save_row(ptrdiff_t row) const {
    const LstmShape s = shape();
    auto h = new_array<T>({s.num_layers, s.hidden_size}), c = new_array<T>({s.num_layers, s.hidden_size});
    shared_->stream.save(row, h.mutable_data(), c.mutable_data());
    return py::make_tuple(h, c);
  }
  void rows_changed() {
    const ptrdiff_t rows = shared_->stream.rows();
    const py::capsule owner = owner_of(shared_);
    y_row_ = py::array_t<T>({H_}, shared_->y.data(), owner);
    y_rows_ = py::array_t<T>({rows, H_}, shared_->y.data(), owner);
  }

  std::shared_ptr<SharedStream<T>> shared_;
  ptrdiff_t I_, H_;
  py::array_t<T> y_row_, y_rows_;  // what step returns
  py::dtype dtype_ = py::dtype::of<T>();
  PyTypeObject* array_type_ = py::detail::npy_api::get().PyArray_Type_;
};

std::unique_ptr<PyStream> make_stream(const PyPackedLSTM& packed, ptrdiff_t capacity) {
  require(
      !packed.lstm.shape.bidirectional, "Stream",
      "packed must have one direction, got a bidirectional LSTM: its reverse direction starts at the end");
  require(capacity >= 1 && capacity <= 1 << 20, "Stream",
          "capacity must lie in 1 .. 2^20, got " + std::to_string(capacity));
  return with_type(packed.lstm.type, [&](auto zero) -> std::unique_ptr<PyStream> {
    using T = decltype(zero);
    require(packed.get<T>()->compute == Compute::kFull, "Stream",
            std::string("packed must be packed for ") + type_name(packed.lstm.type) +
                ", got weights of a lower precision");
    return std::make_unique<TypedStream<T>>(packed.get<T>(), capacity);
  });
}

// pybind11 takes longer to find a function's arguments than a small step takes; so this one method is
// CPython's own kind, which is handed self and x.
PyObject* step(PyObject* self, PyObject* x) {
  auto* const stream = static_cast<PyStream*>(
      reinterpret_cast<py::detail::instance*>(self)->get_value_and_holder().value_ptr());
  if (!stream) {
    PyErr_SetString(PyExc_TypeError, "Stream.step: self must be a Stream whose __init__ has run");
    return nullptr;
  }
  try {
    return stream->step(x);
  } catch (py::error_already_set& e) {
    e.restore();
  } catch (const py::builtin_exception& e) {
    e.set_error();
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
  }
  return nullptr;
}
PyMethodDef step_method = {"step", &step, METH_O,
                           "step(self: fusedlstm._core.Stream, x: numpy.ndarray) -> numpy.ndarray"};

}  // namespace

void bind_stream(py::module_& m) {
  py::class_<PyStream> stream(m, "Stream");
  stream.def(py::init(&make_stream), py::arg("packed"), py::arg("capacity"));
  stream.def_property_readonly("input_size", [](const PyStream& s) { return s.shape().input_size; });
  stream.def_property_readonly("hidden_size", [](const PyStream& s) { return s.shape().hidden_size; });
  stream.def_property_readonly("num_layers", [](const PyStream& s) { return s.shape().num_layers; });
  stream.def_property_readonly("dtype", &PyStream::dtype);
  stream.def_property_readonly("capacity", &PyStream::capacity);
  stream.def_property_readonly("ids", &PyStream::ids);
  stream.def_property_readonly("capsule", &PyStream::capsule);
  stream.def("join", &PyStream::join, py::arg("state") = py::none());
  stream.def("leave", &PyStream::leave, py::arg("id"));
  stream.def("reset", &PyStream::reset, py::arg("id") = py::none());
  stream.def("save", &PyStream::save, py::arg("id") = py::none());
  stream.def("restore", &PyStream::restore, py::arg("state"), py::arg("id") = py::none());
  stream.def("fork", &PyStream::fork, py::arg("id"));
  stream.def("run", &PyStream::run, py::arg("block"));
  auto* const type = reinterpret_cast<PyTypeObject*>(stream.ptr());
  stream.attr("step") = py::reinterpret_steal<py::object>(PyDescr_NewMethod(type, &step_method));
}

}  // namespace fusedlstm
