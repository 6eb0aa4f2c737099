#include <pybind11/stl.h>

#include <cmath>

#include "bindings/objects.h"

namespace fusedlstm {
namespace {

PyPackedLinear bind_pack(const py::object& weight_arg, const py::object& bias_arg,
                         const std::optional<std::string>& compute_dtype) {
  const Type type = type_of(weight_arg, "linear_pack", "weight");
  return with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const auto weight = view<const T>(weight_arg, "linear_pack", "weight", {{"O"}, {"I"}});
    require(weight.size() > 0, "linear_pack", "weight must not be empty, got " + shape_text(weight.array));
    const auto bias = optional_view<const T>(bias_arg, "linear_pack", "bias", {{"O", weight.dim(0)}});
    const Compute compute = parse_compute(compute_dtype, type, weight.dim(1), "linear_pack");
    std::shared_ptr<const PackedLinear<T>> packed;
    without_gil([&] {
      packed = std::make_shared<PackedLinear<T>>(
          pack_linear<T>(weight.dim(0), weight.dim(1), weight.data, bias.data, compute));
    });
    return PyPackedLinear{packed};
  });
}

py::object bind_linear_forward(const PyPackedLinear& packed, const py::object& x_arg) {
  return with_type(variant_type(packed.weights), [&](auto zero) -> py::object {
    using T = decltype(zero);
    const PackedLinear<T>& w = *packed.get<T>();
    const auto x = view<const T>(x_arg, "linear_forward", "x", {{"R"}, {"I", w.inputs}});
    auto y = new_array<T>({x.dim(0), w.outputs});
    T* const out = y.mutable_data();
    without_gil([&] { linear_forward<T>(w, x.dim(0), x.data, out, python_poll()); });
    return y;
  });
}

template <class T>
void require_gradients(const PackedLinear<T>& w, const char* function) {
  require(w.compute != Compute::kInt8, function,
          "packed must be for training, got int8 weights, which are for inference");
}

// dx where it is wanted.
template <class T>
struct WantedGradient {
  py::object array = py::none();
  T* data = nullptr;
  WantedGradient(bool wanted, const std::vector<ptrdiff_t>& shape) {
    if (!wanted) return;
    auto made = new_array<T>(shape);
    data = made.mutable_data();
    array = made;
  }
};

py::object bind_linear_backward(const PyPackedLinear& packed, const py::object& x_arg,
                                const py::object& dy_arg, const py::object& d_weight_arg,
                                const py::object& d_bias_arg, bool need_dx) {
  constexpr const char* function = "linear_backward";
  return with_type(variant_type(packed.weights), [&](auto zero) -> py::object {
    using T = decltype(zero);
    const PackedLinear<T>& w = *packed.get<T>();
    require_gradients(w, function);
    const auto x = view<const T>(x_arg, function, "x", {{"R"}, {"I", w.inputs}});
    const auto dy = view<const T>(dy_arg, function, "dy", {{"R", x.dim(0)}, {"O", w.outputs}});
    const auto d_weight =
        optional_view<T>(d_weight_arg, function, "d_weight", {{"O", w.outputs}, {"I", w.inputs}}, true);
    const auto d_bias = optional_view<T>(d_bias_arg, function, "d_bias", {{"O", w.outputs}}, true);
    const WantedGradient<T> dx(need_dx, {x.dim(0), w.inputs});
    adding_to<T>({&d_weight, &d_bias}, [&](const Poll& poll) {
      linear_backward<T>(w, x.dim(0), x.data, dy.data, dx.data, d_weight.data, d_bias.data, poll);
    });
    return dx.array;
  });
}

py::object bind_embedding_forward(const py::object& weight_arg, const py::object& ids_arg) {
  constexpr const char* function = "embedding_forward";
  return with_type(type_of(weight_arg, function, "weight"), [&](auto zero) -> py::object {
    using T = decltype(zero);
    const auto weight = view<const T>(weight_arg, function, "weight", {{"V"}, {"E"}});
    const auto ids = view<const int32_t>(ids_arg, function, "ids", {{"R"}});
    check_range(ids, 0, weight.dim(0), function, "ids");
    auto y = new_array<T>({ids.dim(0), weight.dim(1)});
    T* const out = y.mutable_data();
    without_gil([&] { embedding_forward<T>(ids.dim(0), weight.dim(1), ids.data, weight.data, out); });
    return y;
  });
}

void bind_embedding_backward(const py::object& ids_arg, const py::object& dy_arg,
                             const py::object& d_weight_arg) {
  constexpr const char* function = "embedding_backward";
  with_type(type_of(d_weight_arg, function, "d_weight"), [&](auto zero) {
    using T = decltype(zero);
    const auto d_weight = view<T>(d_weight_arg, function, "d_weight", {{"V"}, {"E"}}, true);
    const auto ids = view<const int32_t>(ids_arg, function, "ids", {{"R"}});
    check_range(ids, 0, d_weight.dim(0), function, "ids");
    const auto dy = view<const T>(dy_arg, function, "dy", {{"R", ids.dim(0)}, {"E", d_weight.dim(1)}});
    adding_to<T>({&d_weight}, [&](const Poll&) {
      embedding_backward<T>(ids.dim(0), d_weight.dim(1), ids.data, dy.data, d_weight.data);
    });
  });
}

py::object bind_dropout(const py::object& x_arg, double rate, uint64_t seed, uint32_t stream) {
  constexpr const char* function = "dropout";
  return with_type(type_of(x_arg, function, "x"), [&](auto zero) -> py::object {
    using T = decltype(zero);
    const T dropped = check_rate<T>(rate, function, "rate");
    const auto x = view<const T>(x_arg, function, "x", {{"R"}, {"C"}});
    auto y = new_array<T>({x.dim(0), x.dim(1)});
    T* const out = y.mutable_data();
    without_gil([&] { dropout<T>(x.dim(0), x.dim(1), dropped, seed, stream, x.data, out); });
    return y;
  });
}

void check_targets(const View<const int32_t>& targets, ptrdiff_t V, int32_t ignore_index,
                   const char* function) {
  for (ptrdiff_t r = 0; r < targets.size(); ++r) {
    const int32_t id = targets.data[r];
    if ((id >= 0 && id < V) || id == ignore_index) continue;
    throw py::value_error(std::string(function) + ": targets must lie in 0 .. " + std::to_string(V - 1) +
                          " or be ignore_index " + std::to_string(ignore_index) + ", got " +
                          std::to_string(id) + " at position " + std::to_string(r));
  }
}

void check_smoothing(double label_smoothing, const char* function) {
  require(label_smoothing >= 0 && label_smoothing < 1, function,
          "label_smoothing must lie in [0, 1), got " + std::to_string(label_smoothing));
}

py::tuple bind_linear_cross_entropy(const PyPackedLinear& packed, const py::object& x_arg,
                                    const py::object& targets_arg, double scale, int32_t ignore_index,
                                    double label_smoothing, const py::object& d_weight_arg,
                                    const py::object& d_bias_arg, bool need_dx) {
  constexpr const char* function = "linear_cross_entropy";
  return with_type(variant_type(packed.weights), [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    const PackedLinear<T>& w = *packed.get<T>();
    const auto x = view<const T>(x_arg, function, "x", {{"R"}, {"I", w.inputs}});
    const auto targets = view<const int32_t>(targets_arg, function, "targets", {{"R", x.dim(0)}});
    check_targets(targets, w.outputs, ignore_index, function);
    check_smoothing(label_smoothing, function);
    const auto d_weight =
        optional_view<T>(d_weight_arg, function, "d_weight", {{"V", w.outputs}, {"I", w.inputs}}, true);
    const auto d_bias = optional_view<T>(d_bias_arg, function, "d_bias", {{"V", w.outputs}}, true);
    if (need_dx || d_weight.data || d_bias.data) require_gradients(w, function);
    const WantedGradient<T> dx(need_dx, {x.dim(0), w.inputs});
    LossSum loss{};
    adding_to<T>({&d_weight, &d_bias}, [&](const Poll& poll) {
      loss =
          linear_cross_entropy<T>(w, x.dim(0), x.data, targets.data, ignore_index, static_cast<T>(scale),
                                  dx.data, d_weight.data, d_bias.data, poll, static_cast<T>(label_smoothing));
    });
    return py::make_tuple(loss.nll, loss.counted, dx.array);
  });
}

py::tuple bind_cross_entropy(const py::object& logits_arg, const py::object& targets_arg, double scale,
                             int32_t ignore_index, double label_smoothing, bool need_gradient) {
  constexpr const char* function = "cross_entropy";
  return with_type(type_of(logits_arg, function, "logits"), [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    const auto logits = view<const T>(logits_arg, function, "logits", {{"R"}, {"V"}});
    const auto targets = view<const int32_t>(targets_arg, function, "targets", {{"R", logits.dim(0)}});
    check_targets(targets, logits.dim(1), ignore_index, function);
    check_smoothing(label_smoothing, function);
    const WantedGradient<T> d(need_gradient, {logits.dim(0), logits.dim(1)});
    LossSum loss{};
    without_gil([&] {
      loss = cross_entropy<T>(logits.dim(0), logits.dim(1), logits.data, targets.data, ignore_index,
                              static_cast<T>(scale), d.data, python_poll(), static_cast<T>(label_smoothing));
    });
    return py::make_tuple(loss.nll, loss.counted, d.array);
  });
}

py::tuple bind_mean_squared_error(const py::object& y_arg, const py::object& target_arg, bool need_gradient) {
  constexpr const char* function = "mean_squared_error";
  return with_type(type_of(y_arg, function, "y"), [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    Dims any, same;
    const auto array = py::reinterpret_borrow<py::array>(y_arg);
    std::vector<ptrdiff_t> shape;
    for (ptrdiff_t axis = 0; axis < array.ndim(); ++axis) {
      any.push_back({"n"});
      same.push_back({"n", array.shape(axis)});
      shape.push_back(array.shape(axis));
    }
    const auto y = view<const T>(y_arg, function, "y", any);
    const auto target = view<const T>(target_arg, function, "target", same);
    require(y.size() > 0, function, "y must not be empty, got " + shape_text(y.array));
    const WantedGradient<T> dy(need_gradient, shape);
    double loss = 0;
    without_gil([&] { loss = mean_squared_error<T>(y.size(), y.data, target.data, dy.data); });
    return py::make_tuple(loss, dy.array);
  });
}

double bind_gradient_norm(const py::object& gradients_arg) {
  constexpr const char* function = "gradient_norm";
  return with_type(type_of(gradients_arg, function, "gradients"), [&](auto zero) {
    using T = decltype(zero);
    const auto gradients = view<const T>(gradients_arg, function, "gradients", {{"n"}});
    double norm = 0;
    without_gil([&] { norm = gradient_norm<T>(gradients.size(), gradients.data); });
    return norm;
  });
}

void bind_zero_gradients(const py::object& gradients_arg) {
  constexpr const char* function = "zero_gradients";
  with_type(type_of(gradients_arg, function, "gradients"), [&](auto zero) {
    using T = decltype(zero);
    const auto gradients = view<T>(gradients_arg, function, "gradients", {{"n"}}, true);
    without_gil([&] { zero_gradients<T>(gradients.size(), gradients.data); });
  });
}

void bind_sgd_step(const py::object& parameters_arg, const py::object& gradients_arg,
                   const py::object& velocity_arg, double lr, double momentum, double weight_decay,
                   bool nesterov, double gradient_scale) {
  constexpr const char* function = "sgd_step";
  with_type(type_of(parameters_arg, function, "parameters"), [&](auto zero) {
    using T = decltype(zero);
    const auto parameters = view<T>(parameters_arg, function, "parameters", {{"n"}}, true);
    const Dims same{{"n", parameters.size()}};
    const auto gradients = view<const T>(gradients_arg, function, "gradients", same);
    const auto velocity = optional_view<T>(velocity_arg, function, "velocity", same, true);
    require(momentum == 0 || velocity.data, function,
            "velocity must be given when momentum is not 0, got None");
    require(!nesterov || momentum > 0, function,
            "momentum must be positive with nesterov, got " + std::to_string(momentum));
    const SgdStep<T> step{static_cast<T>(lr), static_cast<T>(momentum), static_cast<T>(weight_decay),
                          static_cast<T>(gradient_scale), nesterov};
    without_gil([&] {
      sgd_step<T>(parameters.size(), step, gradients.data, momentum == 0 ? nullptr : velocity.data,
                  parameters.data);
    });
  });
}

void bind_adam_step(const py::object& parameters_arg, const py::object& gradients_arg,
                    const py::object& m_arg, const py::object& v_arg, int64_t step, double lr, double beta1,
                    double beta2, double eps, double weight_decay, bool decoupled, double gradient_scale) {
  constexpr const char* function = "adam_step";
  with_type(type_of(parameters_arg, function, "parameters"), [&](auto zero) {
    using T = decltype(zero);
    const auto parameters = view<T>(parameters_arg, function, "parameters", {{"n"}}, true);
    const Dims same{{"n", parameters.size()}};
    const auto gradients = view<const T>(gradients_arg, function, "gradients", same);
    const auto moment1 = view<T>(m_arg, function, "m", same, true);
    const auto moment2 = view<T>(v_arg, function, "v", same, true);
    require(step >= 1, function, "step must be at least 1, got " + std::to_string(step));
    require(beta1 >= 0 && beta1 < 1, function, "beta1 must lie in [0, 1), got " + std::to_string(beta1));
    require(beta2 >= 0 && beta2 < 1, function, "beta2 must lie in [0, 1), got " + std::to_string(beta2));
    const double count = static_cast<double>(step);
    const AdamStep<T> s{.step_size = static_cast<T>(lr / (1 - std::pow(beta1, count))),
                        .beta1 = static_cast<T>(beta1),
                        .beta2 = static_cast<T>(beta2),
                        .one_minus_beta1 = static_cast<T>(1 - beta1),
                        .one_minus_beta2 = static_cast<T>(1 - beta2),
                        .eps = static_cast<T>(eps),
                        .bias2_root = static_cast<T>(std::sqrt(1 - std::pow(beta2, count))),
                        .weight_decay = static_cast<T>(decoupled ? 0 : weight_decay),
                        .shrink = static_cast<T>(decoupled ? 1 - lr * weight_decay : 1),
                        .gradient_scale = static_cast<T>(gradient_scale)};
    without_gil([&] {
      adam_step<T>(parameters.size(), s, gradients.data, moment1.data, moment2.data, parameters.data);
    });
  });
}

}  // namespace

void bind_ops(py::module_& m) {
  py::class_<PyPackedLinear> packed(m, "PackedLinear");
  packed.def_property_readonly("in_features", [](const PyPackedLinear& p) {
    return std::visit([](const auto& w) { return w->inputs; }, p.weights);
  });
  packed.def_property_readonly("out_features", [](const PyPackedLinear& p) {
    return std::visit([](const auto& w) { return w->outputs; }, p.weights);
  });
  packed.def_property_readonly("dtype",
                               [](const PyPackedLinear& p) { return type_name(variant_type(p.weights)); });
  packed.def_property_readonly("compute_dtype",
                               [](const PyPackedLinear& p) { return compute_name(p.weights); });
  packed.def_property_readonly("nbytes", [](const PyPackedLinear& p) {
    return std::visit([](const auto& w) { return w->bytes(); }, p.weights);
  });

  m.def("linear_pack", &bind_pack, py::arg("weight"), py::arg("bias") = py::none(), py::kw_only(),
        py::arg("compute_dtype") = py::none());
  m.def("linear_forward", &bind_linear_forward, py::arg("packed"), py::arg("x"));
  m.def("linear_backward", &bind_linear_backward, py::arg("packed"), py::arg("x"), py::arg("dy"),
        py::kw_only(), py::arg("d_weight") = py::none(), py::arg("d_bias") = py::none(),
        py::arg("need_dx") = true);
  m.def("embedding_forward", &bind_embedding_forward, py::arg("weight"), py::arg("ids"));
  m.def("embedding_backward", &bind_embedding_backward, py::arg("ids"), py::arg("dy"), py::arg("d_weight"));
  m.def("dropout", &bind_dropout, py::arg("x"), py::arg("rate"), py::arg("seed"), py::arg("stream") = 0);
  m.def("linear_cross_entropy", &bind_linear_cross_entropy, py::arg("packed"), py::arg("x"),
        py::arg("targets"), py::kw_only(), py::arg("scale") = 1.0, py::arg("ignore_index") = -1,
        py::arg("label_smoothing") = 0.0, py::arg("d_weight") = py::none(), py::arg("d_bias") = py::none(),
        py::arg("need_dx") = false);
  m.def("cross_entropy", &bind_cross_entropy, py::arg("logits"), py::arg("targets"), py::kw_only(),
        py::arg("scale") = 1.0, py::arg("ignore_index") = -1, py::arg("label_smoothing") = 0.0,
        py::arg("need_gradient") = true);
  m.def("mean_squared_error", &bind_mean_squared_error, py::arg("y"), py::arg("target"), py::kw_only(),
        py::arg("need_gradient") = true);
  m.def("gradient_norm", &bind_gradient_norm, py::arg("gradients"));
  m.def("zero_gradients", &bind_zero_gradients, py::arg("gradients"));
  m.def("sgd_step", &bind_sgd_step, py::arg("parameters"), py::arg("gradients"),
        py::arg("velocity") = py::none(), py::kw_only(), py::arg("lr"), py::arg("momentum") = 0.0,
        py::arg("weight_decay") = 0.0, py::arg("nesterov") = false, py::arg("gradient_scale") = 1.0);
  m.def("adam_step", &bind_adam_step, py::arg("parameters"), py::arg("gradients"), py::arg("m"), py::arg("v"),
        py::kw_only(), py::arg("step"), py::arg("lr"), py::arg("beta1") = 0.9, py::arg("beta2") = 0.999,
        py::arg("eps") = 1e-8, py::arg("weight_decay") = 0.0, py::arg("decoupled") = false,
        py::arg("gradient_scale") = 1.0);
}

}  // namespace fusedlstm
