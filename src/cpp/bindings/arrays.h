// From a NumPy array to a checked pointer: the only place where arguments of native functions are validated.
//
//   const auto x = view<float>(x_arg, "lstm_forward", "x", {{"N"}, {"T"}, {"I", 64}});
//   ValueError: lstm_forward: x must be float32 (N, T, I=64), got float64 (35, 20, 65)
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

namespace fusedlstm {

namespace py = pybind11;

struct Dim {
  const char* letter;
  ptrdiff_t size = -1;  // -1: any
};
using Dims = std::vector<Dim>;

// A C-contiguous array of a known shape. Keeps the array alive.
template <class T>
struct View {
  py::array array;
  T* data = nullptr;
  ptrdiff_t dim(size_t axis) const { return array.shape(static_cast<ptrdiff_t>(axis)); }
  ptrdiff_t size() const { return array.size(); }
  size_t bytes() const { return data ? static_cast<size_t>(array.nbytes()) : 0; }
};

inline std::string shape_text(const py::array& a) {
  std::string text = "(";
  for (ptrdiff_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
  return text + (a.ndim() == 1 ? ",)" : ")");
}
inline std::string dims_text(const Dims& dims) {
  std::string text = "(";
  for (size_t i = 0; i < dims.size(); ++i) {
    text += (i ? ", " : "") + std::string(dims[i].letter);
    if (dims[i].size >= 0) text += "=" + std::to_string(dims[i].size);
  }
  return text + (dims.size() == 1 ? ",)" : ")");
}

template <class T>
View<T> view(const py::handle& object, const char* function, const char* argument, const Dims& dims,
             bool written = false) {
  using Element = std::remove_const_t<T>;
  const auto wanted = [&] {
    return std::string(function) + ": " + argument + " must be " +
           std::string(py::str(py::dtype::of<Element>())) + " " + dims_text(dims) + ", got ";
  };
  if (!py::isinstance<py::array>(object))
    throw py::type_error(wanted() + std::string(py::str(py::type::handle_of(object).attr("__name__"))));
  const auto a = py::reinterpret_borrow<py::array>(object);
  bool same = py::isinstance<py::array_t<Element>>(object) && a.ndim() == static_cast<ptrdiff_t>(dims.size());
  for (size_t i = 0; same && i < dims.size(); ++i)
    same = dims[i].size < 0 || dims[i].size == a.shape(static_cast<ptrdiff_t>(i));
  if (!same) throw py::value_error(wanted() + std::string(py::str(a.dtype())) + " " + shape_text(a));
  const int flags = a.flags();
  if (!(flags & py::array::c_style))
    throw py::value_error(wanted() + "a strided array " + shape_text(a) +
                          "; pass numpy.ascontiguousarray(...)");
  if (!(flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
    throw py::value_error(wanted() + "an array that is not aligned to its elements; pass a copy");
  if (written && !a.writeable()) throw py::value_error(wanted() + "a read-only array, and it is written to");
  return {a, static_cast<T*>(const_cast<void*>(a.data()))};
}

// None gives a null pointer.
template <class T>
View<T> optional_view(const py::handle& object, const char* function, const char* argument, const Dims& dims,
                      bool written = false) {
  if (object.is_none()) return {};
  return view<T>(object, function, argument, dims, written);
}

// Every element of ids in [low, high).
inline void check_range(const View<const int32_t>& ids, int64_t low, int64_t high, const char* function,
                        const char* argument) {
  for (ptrdiff_t j = 0; j < ids.size(); ++j)
    if (ids.data[j] < low || ids.data[j] >= high)
      throw py::value_error(std::string(function) + ": " + argument + " must lie in " + std::to_string(low) +
                            " .. " + std::to_string(high - 1) + ", got " + std::to_string(ids.data[j]) +
                            " at position " + std::to_string(j));
}

inline void require(bool condition, const char* function, const std::string& wanted_and_got) {
  if (!condition) throw py::value_error(std::string(function) + ": " + wanted_and_got);
}

}  // namespace fusedlstm
