// Python's objects that hold native state, for float32 or float64.
#pragma once

#include <memory>
#include <variant>

#include "bindings/support.h"
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

struct PyTape {
  std::variant<std::unique_ptr<Tape<float>>, std::unique_ptr<Tape<double>>> tape;
};

struct PyPackedLinear {
  EitherType<PackedLinear> weights;

  template <class T>
  const std::shared_ptr<const PackedLinear<T>>& get() const {
    return std::get<std::shared_ptr<const PackedLinear<T>>>(weights);
  }
};

}  // namespace fusedlstm
