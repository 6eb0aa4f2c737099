#include <pybind11/stl.h>

#include <cstring>
#include <limits>
#include <type_traits>

#include "bindings/support.h"
#include "kernels/philox.h"
#include "runtime/cpu.h"
#include "runtime/finite.h"

namespace fusedlstm {
namespace {

std::vector<std::string> names(const std::vector<const Level*>& levels) {
  std::vector<std::string> text;
  for (const Level* level : levels) text.emplace_back(level->name);
  return text;
}

template <auto Function32, auto Function64>
py::object map_array(const py::object& x_arg, const char* function) {
  return with_type(type_of(x_arg, function, "x"), [&](auto zero) -> py::object {
    using T = decltype(zero);
    const auto x = view<const T>(x_arg, function, "x", {{"n"}});
    auto y = new_array<T>({x.size()});
    T* const out = y.mutable_data();
    // A job, for its flush-to-zero: the functions are to be seen as the kernels see them.
    without_gil([&] {
      run_job(1, nullptr, [&](Team&) {
        if constexpr (sizeof(T) == 4)
          (current_level().f32.*Function32)(x.size(), x.data, out);
        else
          (current_level().f64.*Function64)(x.size(), x.data, out);
      });
    });
    return y;
  });
}

}  // namespace

void bind_runtime(py::module_& m) {
  m.def(
      "isa", [] { return std::string(current_level().name); },
      "The instruction set that new work is done with.");
  m.def(
      "isa_levels", [] { return names(runnable_levels()); },
      "The instruction sets that this machine can run, lowest first.");
  m.def("isa_compiled", [] { return names(compiled_levels()); });
  m.def("set_isa", &set_level, py::arg("name"),
        "Choose one of `isa_levels`; what is packed already keeps its own. ValueError for any other.");
  m.def("num_threads", &num_threads, "The number of threads that a native call may use.");
  m.def("set_num_threads", &set_num_threads, py::arg("threads"),
        "Set it, from 1 to 1024; ValueError otherwise. No result depends on it.");
  m.def("cpu_info", [] {
    py::dict info;
    info["brand"] = cpu_brand();
    info["features"] = cpu_features();
    info["cache_bytes"] = cache_sizes();
    return info;
  });
  m.def("build_info", [] {
    py::dict info;
    info["version"] = FUSEDLSTM_VERSION;
    info["compiler"] = FUSEDLSTM_COMPILER;
    info["build_type"] = FUSEDLSTM_BUILD_TYPE;
    info["isa_compiled"] = names(compiled_levels());
    info["pybind11"] =
        PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
    return info;
  });
  m.def(
      "aligned_zeros",
      [](ptrdiff_t size, const std::string& dtype) {
        require(size >= 0, "aligned_zeros", "size must be at least 0, got " + std::to_string(size));
        return with_type(parse_type(dtype, "aligned_zeros"), [&](auto zero) -> py::object {
          auto array = aligned_array<decltype(zero)>({size});
          std::fill(array.mutable_data(), array.mutable_data() + size, zero);
          return array;
        });
      },
      py::arg("size"), py::arg("dtype") = "float32");
  m.def(
      "all_finite",
      [](const py::object& x) {
        return with_type(type_of(x, "all_finite", "x"), [&](auto zero) {
          using T = decltype(zero);
          const auto array = py::reinterpret_borrow<py::array>(x);
          require((array.flags() & py::array::c_style) != 0, "all_finite",
                  "x must be C-contiguous, got a strided array " + shape_text(array));
          const T* const values = static_cast<const T*>(array.data());
          const ptrdiff_t size = array.size();
          constexpr ptrdiff_t small = 1 << 16;
          if (size <= small) return all_finite(values, size);
          bool finite = true;
          without_gil([&] { finite = all_finite(values, size); });
          return finite;
        });
      },
      py::arg("x"));
#define FUSEDLSTM_BIND_MAP(name)                                                   \
  m.def(                                                                           \
      #name,                                                                       \
      [](const py::object& x) {                                                    \
        return map_array<&Kernels<float>::name, &Kernels<double>::name>(x, #name); \
      },                                                                           \
      py::arg("x"))
  FUSEDLSTM_BIND_MAP(exp);
  FUSEDLSTM_BIND_MAP(log);
  FUSEDLSTM_BIND_MAP(sigmoid);
  FUSEDLSTM_BIND_MAP(tanh);
#undef FUSEDLSTM_BIND_MAP
  m.def(
      "philox",
      [](uint64_t seed, uint32_t stream, uint32_t row, uint32_t step, uint32_t block) {
        const Philox4 random = philox(seed, stream, row, step, block);
        py::array_t<uint32_t> words(4);
        std::copy(random.word, random.word + 4, words.mutable_data());
        return words;
      },
      py::arg("seed"), py::arg("stream"), py::arg("row"), py::arg("step"), py::arg("block"));
}

}  // namespace fusedlstm
