// What every binding needs: choosing the type, leaving the interpreter, memory that NumPy holds on to.
#pragma once

#include <atomic>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "runtime/exclusive.h"
#include "runtime/memory.h"
#include "runtime/profiler.h"
#include "runtime/threads.h"

namespace fusedlstm {

enum class Type { kFloat32, kFloat64 };

inline Type parse_type(const std::string& name, const char* function) {
  if (name == "float32") return Type::kFloat32;
  if (name == "float64") return Type::kFloat64;
  throw py::value_error(std::string(function) + ": dtype must be 'float32' or 'float64', got '" + name + "'");
}

// Calls body(float{}) or body(double{}).
template <class Body>
auto with_type(Type type, const Body& body) {
  return type == Type::kFloat32 ? body(float{}) : body(double{});
}

// The type of an array argument that decides the type of a call.
inline Type type_of(const py::handle& object, const char* function, const char* argument) {
  if (py::isinstance<py::array_t<float>>(object)) return Type::kFloat32;
  if (py::isinstance<py::array_t<double>>(object)) return Type::kFloat64;
  const std::string wanted =
      std::string(function) + ": " + argument + " must be a float32 or float64 array, got ";
  if (!py::isinstance<py::array>(object))
    throw py::type_error(wanted + std::string(py::str(py::type::handle_of(object).attr("__name__"))));
  throw py::value_error(wanted + std::string(py::str(py::reinterpret_borrow<py::array>(object).dtype())));
}

// A thread that asks for the interpreter while it ends is stopped in the middle of native code, which C++
// cannot survive: such a (daemon) thread waits for the end of the process instead, as Python 3.14 does by
// itself.
inline void wait_if_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  while (Py_IsFinalizing()) pause_forever();
#else
  while (_Py_IsFinalizing()) pause_forever();
#endif
}

// For long calls: lets Python see a pending Ctrl-C, which only the main thread can. The exception stays set
// for `without_gil`.
inline Poll python_poll() {
  if (!is_main_thread()) return nullptr;
  return [] {
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
  };
}

class ReleasedInterpreter {
 public:
  ReleasedInterpreter() : state_(PyEval_SaveThread()) {}
  ~ReleasedInterpreter() {
    wait_if_finalizing();
    PyEval_RestoreThread(state_);
  }
  ReleasedInterpreter(const ReleasedInterpreter&) = delete;
  ReleasedInterpreter& operator=(const ReleasedInterpreter&) = delete;

 private:
  PyThreadState* state_;
};

template <class Work>
void without_gil(const Work& work) {
  try {
    const ReleasedInterpreter released;
    const Scope scope(Phase::kOther);
    work();
  } catch (const Interrupted&) {
    throw py::error_already_set();
  }
}

// The same for work that adds to arrays: calls that add to the same memory take turns.
template <class T, class Work>
void adding_to(std::initializer_list<const View<T>*> arrays, const Work& work) {
  std::vector<Exclusive::Range> ranges;
  for (const View<T>* array : arrays) ranges.push_back({array->data, array->bytes()});
  without_gil([&] {
    const Poll poll = python_poll();
    const Exclusive turn(std::move(ranges), poll);
    work(poll);
  });
}

// Whether something that serves one call has been used, for calls that may come at the same moment.
class Once {
 public:
  bool used() const { return used_.load(); }
  // True for the first.
  bool use() { return !used_.exchange(true); }

 private:
  std::atomic<bool> used_{false};
};

// A rate in [0, 1), also after rounding to T.
template <class T>
T check_rate(double rate, const char* function, const char* argument) {
  if (!(rate >= 0 && static_cast<T>(rate) < T(1)))
    throw py::value_error(std::string(function) + ": " + argument + " must lie in [0, 1), got " +
                          std::string(py::repr(py::float_(rate))));
  return static_cast<T>(rate);
}

// A new array in aligned memory; large ones come from the pool of kept blocks.
template <class T>
py::array_t<T> aligned_array(const std::vector<ptrdiff_t>& shape) {
  ptrdiff_t size = 1;
  for (const ptrdiff_t n : shape) size *= n;
  auto* const buffer = new Buffer<T>(size);
  const py::capsule owner(buffer, [](void* p) { delete static_cast<Buffer<T>*>(p); });
  static T nothing;
  return py::array_t<T>(shape, buffer->data() ? buffer->data() : &nothing, owner);
}

// One call at a time on an object: whoever comes second is told so, and never waits.
class Turn {
 public:
  explicit Turn(std::atomic_flag& busy) : busy_(busy), mine_(!busy.test_and_set(std::memory_order_acquire)) {}
  Turn(std::atomic_flag& busy, const char* function, const char* what) : Turn(busy) {
    if (!mine_)
      throw std::runtime_error(std::string(function) + ": the " + what + " is in use by another call");
  }
  ~Turn() {
    if (mine_) busy_.clear(std::memory_order_release);
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  bool mine() const { return mine_; }

 private:
  std::atomic_flag& busy_;
  bool mine_;
};

// A new array for results: a small one in NumPy's own memory, which is quicker to have.
template <class T>
py::array_t<T> new_array(const std::vector<ptrdiff_t>& shape) {
  constexpr ptrdiff_t small = 1 << 12;
  ptrdiff_t size = 1;
  for (const ptrdiff_t n : shape) size *= n;
  return size > small ? aligned_array<T>(shape) : py::array_t<T>(shape);
}

void bind_profiler(py::module_& m);
void bind_runtime(py::module_& m);
void bind_lstm(py::module_& m);
void bind_ops(py::module_& m);
void bind_generation(py::module_& m);
void bind_attention(py::module_& m);
void bind_decode(py::module_& m);
void bind_beam(py::module_& m);
void bind_attention_search(py::module_& m);
void bind_one_to_many(py::module_& m);
void bind_session(py::module_& m);
void bind_stream(py::module_& m);

}  // namespace fusedlstm
