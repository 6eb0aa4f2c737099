// One float32 LSTM layer through oneDNN's own interface, as its examples use it: weights in the layout that
// the primitive asks for, time first. For the 2.x interface. Compiled by native_peers.py, with OpenMP.
//
// T steps, N sequences, I inputs, H hidden units; w_ih (4H, I), w_hh (4H, H), bias (4H,), gates i f g o.
#include <omp.h>

#include <dnnl.hpp>
#include <unordered_map>
#include <vector>

namespace {

using dnnl::memory;
using Tag = memory::format_tag;
using Arguments = std::unordered_map<int, memory>;

memory::desc described(const memory::dims& dims, Tag tag) { return {dims, memory::data_type::f32, tag}; }

struct Layer {
  int threads;
  memory::dim N, T, I, H;
  bool training;
  std::vector<float> w_ih, w_hh, bias;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::lstm_forward::primitive_desc forward;
  dnnl::lstm_backward::primitive_desc backward;
  dnnl::primitive forward_step, backward_step;
  Arguments forward_arguments, backward_arguments;
  memory x, y, dx, dy;

  Layer(int threads_in, memory::dim n, memory::dim t, memory::dim i, memory::dim h, bool training_in,
        const float* w_ih_in, const float* w_hh_in, const float* bias_in)
      : threads(threads_in),
        N(n),
        T(t),
        I(i),
        H(h),
        training(training_in),
        w_ih(w_ih_in, w_ih_in + 4 * h * i),
        w_hh(w_hh_in, w_hh_in + 4 * h * h),
        bias(bias_in, bias_in + 4 * h) {
    omp_set_num_threads(threads);
    const auto x_desc = described({T, N, I}, Tag::tnc), y_desc = described({T, N, H}, Tag::tnc);
    const auto bias_desc = described({1, 1, 4, H}, Tag::ldgo), none = memory::desc();
    const auto any_ih = described({1, 1, I, 4, H}, Tag::any), any_hh = described({1, 1, H, 4, H}, Tag::any);
    const auto direction = dnnl::rnn_direction::unidirectional_left2right;
    const auto kind = training ? dnnl::prop_kind::forward_training : dnnl::prop_kind::forward_inference;
    forward = {{kind, direction, x_desc, none, none, any_ih, any_hh, bias_desc, y_desc, none, none}, engine};
    forward_step = dnnl::lstm_forward(forward);
    x = memory(x_desc, engine);
    y = memory(y_desc, engine);
    forward_arguments = {{DNNL_ARG_SRC_LAYER, x},
                         {DNNL_ARG_DST_LAYER, y},
                         {DNNL_ARG_BIAS, memory(bias_desc, engine, bias.data())},
                         {DNNL_ARG_WEIGHTS_LAYER, memory(forward.weights_layer_desc(), engine)},
                         {DNNL_ARG_WEIGHTS_ITER, memory(forward.weights_iter_desc(), engine)}};
    if (training) {
      forward_arguments[DNNL_ARG_WORKSPACE] = memory(forward.workspace_desc(), engine);
      const dnnl::lstm_backward::desc d(dnnl::prop_kind::backward, direction, x_desc, none, none, any_ih,
                                        any_hh, bias_desc, y_desc, none, none, x_desc, none, none,
                                        described({1, 1, I, 4, H}, Tag::any),
                                        described({1, 1, H, 4, H}, Tag::any), bias_desc, y_desc, none, none);
      backward = {d, engine, forward};
      backward_step = dnnl::lstm_backward(backward);
      dx = memory(x_desc, engine);
      dy = memory(y_desc, engine);
      backward_arguments = forward_arguments;
      backward_arguments[DNNL_ARG_WEIGHTS_LAYER] = memory(backward.weights_layer_desc(), engine);
      backward_arguments[DNNL_ARG_WEIGHTS_ITER] = memory(backward.weights_iter_desc(), engine);
      backward_arguments[DNNL_ARG_DIFF_SRC_LAYER] = dx;
      backward_arguments[DNNL_ARG_DIFF_DST_LAYER] = dy;
      backward_arguments[DNNL_ARG_DIFF_WEIGHTS_LAYER] = memory(backward.diff_weights_layer_desc(), engine);
      backward_arguments[DNNL_ARG_DIFF_WEIGHTS_ITER] = memory(backward.diff_weights_iter_desc(), engine);
      backward_arguments[DNNL_ARG_DIFF_BIAS] = memory(bias_desc, engine);
    }
    pack();
  }

  // (4H, K) is the dims {1, 1, K, 4, H} in the order l d g o i.
  void pack(int argument, std::vector<float>& w, memory::dim K) {
    memory plain(described({1, 1, K, 4, H}, Tag::ldgoi), engine, w.data());
    for (Arguments* arguments : {&forward_arguments, &backward_arguments})
      if (!arguments->empty()) {
        memory to = arguments->at(argument);
        dnnl::reorder(plain, to).execute(stream, plain, to);
      }
  }
  void pack() {
    pack(DNNL_ARG_WEIGHTS_LAYER, w_ih, I);
    pack(DNNL_ARG_WEIGHTS_ITER, w_hh, H);
    stream.wait();
  }

  void use(const memory& to, const float* data) { to.set_data_handle(const_cast<float*>(data)); }

  void infer(const float* x_data, float* y_data) {
    omp_set_num_threads(threads);
    use(x, x_data);
    use(y, y_data);
    forward_step.execute(stream, forward_arguments);
    stream.wait();
  }
  // The gradients of the weights are added to what is there, so they are set to zero first.
  void train(const float* x_data, const float* dy_data, float* y_data, float* dx_data) {
    omp_set_num_threads(threads);
    pack();
    for (const int argument : {DNNL_ARG_DIFF_WEIGHTS_LAYER, DNNL_ARG_DIFF_WEIGHTS_ITER, DNNL_ARG_DIFF_BIAS}) {
      const memory& gradient = backward_arguments.at(argument);
      char* const data = static_cast<char*>(gradient.get_data_handle());
      std::fill(data, data + gradient.get_desc().get_size(), char(0));
    }
    infer(x_data, y_data);
    use(dy, dy_data);
    use(dx, dx_data);
    backward_step.execute(stream, backward_arguments);
    stream.wait();
  }
};

}  // namespace

extern "C" {
const char* peer_version() {
  static const std::string text = std::to_string(dnnl_version()->major) + "." +
                                  std::to_string(dnnl_version()->minor) + "." +
                                  std::to_string(dnnl_version()->patch);
  return text.c_str();
}
void* peer_new(int threads, long N, long T, long I, long H, int training, const float* w_ih,
               const float* w_hh, const float* bias) {
  try {
    return new Layer(threads, N, T, I, H, training != 0, w_ih, w_hh, bias);
  } catch (const dnnl::error&) {
    return nullptr;
  }
}
void peer_delete(void* layer) { delete static_cast<Layer*>(layer); }
void peer_infer(void* layer, const float* x, float* y) { static_cast<Layer*>(layer)->infer(x, y); }
void peer_train(void* layer, const float* x, const float* dy, float* y, float* dx) {
  static_cast<Layer*>(layer)->train(x, dy, y, dx);
}
}
