// Python's objects that hold native state, for float32 or float64.
#pragma once

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <variant>

#include "bindings/support.h"
#include "decode/language_model.h"
#include "lstm/lstm.h"
#include "ops/ops.h"

namespace fusedlstm {

template <template <class> class Thing>
using EitherType = std::variant<std::shared_ptr<const Thing<float>>, std::shared_ptr<const Thing<double>>>;

template <class Variant>
Type variant_type(const Variant& v) {
  return v.index() == 0 ? Type::kFloat32 : Type::kFloat64;
}
inline const char* type_name(Type type) { return type == Type::kFloat32 ? "float32" : "float64"; }

// compute_dtype of a function that packs weights; int8 adds up to `terms` products, and has no backward.
inline Compute parse_compute(const std::optional<std::string>& name, Type type, ptrdiff_t terms,
                             const char* function) {
  if (!name || *name == type_name(type)) return Compute::kFull;
  if (type == Type::kFloat32 && *name == "bfloat16") return Compute::kBfloat16;
  if (type == Type::kFloat32 && *name == "int8") {
    require(terms <= kInt8MostTerms, function,
            "compute_dtype 'int8' adds up to " + std::to_string(kInt8MostTerms) +
                " products, got inputs of " + std::to_string(terms));
    return Compute::kInt8;
  }
  throw py::value_error(std::string(function) + ": compute_dtype must be " +
                        (type == Type::kFloat32 ? "'float32', 'bfloat16' or 'int8'" : "'float64'") + " for " +
                        type_name(type) + " weights, got '" + *name + "'");
}
// Of packed weights.
template <class Variant>
const char* compute_name(const Variant& weights) {
  switch (std::visit([](const auto& w) { return w->compute; }, weights)) {
    case Compute::kBfloat16:
      return "bfloat16";
    case Compute::kInt8:
      return "int8";
    default:
      return type_name(variant_type(weights));
  }
}

struct PyLSTM {
  LstmShape shape;
  Type type;
};

struct PyPackedLSTM {
  PyLSTM lstm;
  EitherType<PackedWeights> weights;

  template <class T>
  const std::shared_ptr<const PackedWeights<T>>& get() const {
    return std::get<std::shared_ptr<const PackedWeights<T>>>(weights);
  }
};

// int8 weights take hidden states in steps of 1/127 of [-1, 1]. h0: `count` numbers, or null.
template <class T>
void check_hidden(const PackedWeights<T>& weights, const T* h0, ptrdiff_t count, const char* function) {
  for (ptrdiff_t j = 0; weights.compute == Compute::kInt8 && h0 && j < count; ++j)
    require(std::abs(h0[j]) <= 1, function,
            "h0 must lie in [-1, 1] with int8 weights, got " + std::to_string(h0[j]) + " at position " +
                std::to_string(j));
}
template <class T>
void check_hidden(const PackedWeights<T>& weights, const View<const T>& h0, const char* function) {
  check_hidden(weights, h0.data, h0.data ? h0.size() : 0, function);
}

struct PyTape {
  std::variant<std::unique_ptr<Tape<float>>, std::unique_ptr<Tape<double>>> tape;
  Once backward;
};

struct PyPackedLinear {
  EitherType<PackedLinear> weights;

  template <class T>
  const std::shared_ptr<const PackedLinear<T>>& get() const {
    return std::get<std::shared_ptr<const PackedLinear<T>>>(weights);
  }
};

struct PyDecoder {
  EitherType<LanguageModelDecoder> decoder;
};

}  // namespace fusedlstm
