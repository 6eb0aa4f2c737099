// One float32 LSTM layer through libxsmm's own interface (1.x), as its samples use it: blocked weights, time
// first, all threads in one region for the whole sequence. Compiled by native_peers.py, with OpenMP.
//
// T steps, N sequences, I inputs, H hidden units; w_ih (4H, I), w_hh (4H, H), bias (4H,), gates i f g o.
// libxsmm calls I and H C and K, and its gates are i g f o.
#include <libxsmm_source.h>
// libxsmm_config.h knows no version where it was not generated
#undef LIBXSMM_CONFIG_VERSION
#include <libxsmm_version.h>
#include <omp.h>

#include <cstdlib>
#include <initializer_list>
#include <string>
#include <vector>

namespace {

constexpr int kGateOf[4] = {0, 2, 1, 3};  // theirs from ours

struct Aligned {
  float* data = nullptr;
  explicit Aligned(std::size_t size)
      : data(static_cast<float*>(libxsmm_aligned_malloc((size + 16) * 4, 64))) {
    std::fill(data, data + size, 0.0f);
  }
  Aligned(const Aligned&) = delete;
  ~Aligned() { libxsmm_free(data); }
};

// The largest divisor of n among multiples of 16 up to 64; 0 where there is none.
int block_of(long n) {
  for (const int block : {64, 48, 32, 16})
    if (n % block == 0) return block;
  return 0;
}

struct Layer {
  int threads;
  long N, T, I, H, block_i, block_h;
  bool training;
  std::vector<float> w_ih, w_hh;
  libxsmm_dnn_rnncell* cell = nullptr;
  Aligned w, w_t, r, r_t, bias, h0, c0, c, i, f, o, ci, co, d_w, d_r, d_bias, d_h0, d_c0, d_c_n, y_none;
  float *scratch = nullptr, *internal = nullptr;
  std::vector<libxsmm_dnn_tensor*> tensors;
  libxsmm_dnn_tensor *x, *y, *dx = nullptr, *dy = nullptr;
  bool failed = false;

  Layer(int threads_in, long n, long t, long i_in, long h, bool training_in, const float* w_ih_in,
        const float* w_hh_in, const float* bias_in)
      : threads(threads_in),
        N(n),
        T(t),
        I(i_in),
        H(h),
        block_i(block_of(I)),
        block_h(block_of(H)),
        training(training_in),
        w_ih(w_ih_in, w_ih_in + 4 * H * I),
        w_hh(w_hh_in, w_hh_in + 4 * H * H),
        w(size(4 * H * I)),
        w_t(size(4 * H * I)),
        r(size(4 * H * H)),
        r_t(size(4 * H * H)),
        bias(size(4 * H)),
        h0(size(N * H)),
        c0(size(N * H)),
        c(size(T * N * H)),
        i(size(T * N * H)),
        f(size(T * N * H)),
        o(size(T * N * H)),
        ci(size(T * N * H)),
        co(size(T * N * H)),
        d_w(size(training ? 4 * H * I : 0)),
        d_r(size(training ? 4 * H * H : 0)),
        d_bias(size(4 * H)),
        d_h0(size(N * H)),
        d_c0(size(N * H)),
        d_c_n(size(N * H)),
        y_none(size(T * N * (H > I ? H : I))) {
    for (int gate = 0; gate < 4; ++gate)
      for (long u = 0; u < H; ++u) bias.data[gate * H + u] = bias_in[kGateOf[gate] * H + u];
    libxsmm_dnn_rnncell_desc desc{};
    desc.threads = threads;
    desc.K = static_cast<libxsmm_blasint>(H);
    desc.N = static_cast<libxsmm_blasint>(N);
    desc.C = static_cast<libxsmm_blasint>(I);
    desc.max_T = static_cast<libxsmm_blasint>(T);
    desc.bk = static_cast<libxsmm_blasint>(block_h);
    desc.bc = static_cast<libxsmm_blasint>(block_i);
    desc.bn = N % 32 == 0 ? 32 : N % 16 == 0 ? 16 : static_cast<libxsmm_blasint>(N <= 64 ? N : 1);
    desc.cell_type = LIBXSMM_DNN_RNNCELL_LSTM;
    desc.datatype_in = desc.datatype_out = LIBXSMM_DNN_DATATYPE_F32;
    desc.buffer_format = LIBXSMM_DNN_TENSOR_FORMAT_NC;
    desc.filter_format = LIBXSMM_DNN_TENSOR_FORMAT_CKPACKED;
    libxsmm_dnn_err_t status;
    cell = libxsmm_dnn_create_rnncell(desc, &status);
    check(status);
    if (failed) return;
    check(libxsmm_dnn_rnncell_allocate_forget_bias(cell, 0.0f));
    x = bind(LIBXSMM_DNN_RNN_REGULAR_INPUT, y_none.data);
    y = bind(LIBXSMM_DNN_RNN_REGULAR_HIDDEN_STATE, y_none.data);
    bind(LIBXSMM_DNN_RNN_REGULAR_CS_PREV, c0.data);
    bind(LIBXSMM_DNN_RNN_REGULAR_HIDDEN_STATE_PREV, h0.data);
    bind(LIBXSMM_DNN_RNN_REGULAR_WEIGHT, w.data);
    bind(LIBXSMM_DNN_RNN_REGULAR_RECUR_WEIGHT, r.data);
    bind(LIBXSMM_DNN_RNN_REGULAR_BIAS, bias.data);
    bind(LIBXSMM_DNN_RNN_REGULAR_CS, c.data);
    bind(LIBXSMM_DNN_RNN_INTERNAL_I, i.data);
    bind(LIBXSMM_DNN_RNN_INTERNAL_F, f.data);
    bind(LIBXSMM_DNN_RNN_INTERNAL_O, o.data);
    bind(LIBXSMM_DNN_RNN_INTERNAL_CI, ci.data);
    bind(LIBXSMM_DNN_RNN_INTERNAL_CO, co.data);
    if (training) {
      bind(LIBXSMM_DNN_RNN_REGULAR_WEIGHT_TRANS, w_t.data);
      bind(LIBXSMM_DNN_RNN_REGULAR_RECUR_WEIGHT_TRANS, r_t.data);
      dx = bind(LIBXSMM_DNN_RNN_GRADIENT_INPUT, y_none.data);
      dy = bind(LIBXSMM_DNN_RNN_GRADIENT_HIDDEN_STATE, y_none.data);
      bind(LIBXSMM_DNN_RNN_GRADIENT_CS_PREV, d_c0.data);
      bind(LIBXSMM_DNN_RNN_GRADIENT_HIDDEN_STATE_PREV, d_h0.data);
      bind(LIBXSMM_DNN_RNN_GRADIENT_CS, d_c_n.data);
      bind(LIBXSMM_DNN_RNN_GRADIENT_WEIGHT, d_w.data);
      bind(LIBXSMM_DNN_RNN_GRADIENT_RECUR_WEIGHT, d_r.data);
      bind(LIBXSMM_DNN_RNN_GRADIENT_BIAS, d_bias.data);
    }
    const auto kind = training ? LIBXSMM_DNN_COMPUTE_KIND_ALL : LIBXSMM_DNN_COMPUTE_KIND_FWD;
    const std::size_t scratch_bytes = libxsmm_dnn_rnncell_get_scratch_size(cell, kind, &status);
    scratch = static_cast<float*>(libxsmm_aligned_malloc(scratch_bytes + 64, 2097152));
    check(libxsmm_dnn_rnncell_bind_scratch(cell, kind, scratch));
    const std::size_t state_bytes = libxsmm_dnn_rnncell_get_internalstate_size(cell, kind, &status);
    internal = static_cast<float*>(libxsmm_aligned_malloc(state_bytes + 64, 2097152));
    check(libxsmm_dnn_rnncell_bind_internalstate(cell, kind, internal));
    pack();
  }
  Layer(const Layer&) = delete;
  ~Layer() {
    for (const libxsmm_dnn_tensor* tensor : tensors) libxsmm_dnn_destroy_tensor(tensor);
    if (cell) libxsmm_dnn_destroy_rnncell(cell);
    libxsmm_free(scratch);
    libxsmm_free(internal);
  }

  static std::size_t size(long n) { return static_cast<std::size_t>(n); }
  void check(libxsmm_dnn_err_t status) {
    if (status != LIBXSMM_DNN_SUCCESS && status < 100000) return;  // a warning about block sizes
    if (status != LIBXSMM_DNN_SUCCESS) failed = true;
  }

  libxsmm_dnn_tensor* bind(libxsmm_dnn_tensor_type type, float* data) {
    libxsmm_dnn_err_t status;
    libxsmm_dnn_tensor_datalayout* layout = libxsmm_dnn_rnncell_create_tensor_datalayout(cell, type, &status);
    check(status);
    libxsmm_dnn_tensor* tensor = libxsmm_dnn_link_tensor(layout, data, &status);
    check(status);
    libxsmm_dnn_destroy_tensor_datalayout(layout);
    check(libxsmm_dnn_rnncell_bind_tensor(cell, tensor, type));
    tensors.push_back(tensor);
    return tensor;
  }

  // from (4H, K), gates i f g o, to [gate][H / bh][K / bk][bk][bh] and, for backward, [gate][K / bk][H /
  // bh][bh][bk]
  void pack(const float* from, long K, long bk, float* to, float* transposed) const {
    const long bh = block_h;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int gate = 0; gate < 4; ++gate)
      for (long hb = 0; hb < H / bh; ++hb)
        for (long kb = 0; kb < K / bk; ++kb)
          for (long k = 0; k < bk; ++k)
            for (long h = 0; h < bh; ++h) {
              const float value = from[(kGateOf[gate] * H + hb * bh + h) * K + kb * bk + k];
              to[gate * H * K + ((hb * (K / bk) + kb) * bk + k) * bh + h] = value;
              if (training) transposed[gate * H * K + ((kb * (H / bh) + hb) * bh + h) * bk + k] = value;
            }
  }
  void pack() const {
    pack(w_ih.data(), I, block_i, w.data, w_t.data);
    pack(w_hh.data(), H, block_h, r.data, r_t.data);
  }

  void run(libxsmm_dnn_compute_kind kind) {
#pragma omp parallel num_threads(threads)
    libxsmm_dnn_rnncell_execute_st(cell, kind, 0, omp_get_thread_num());
  }
  void infer(const float* x_data, float* y_data) {
    libxsmm_dnn_set_tensor_data_ptr(x, x_data);
    libxsmm_dnn_set_tensor_data_ptr(y, y_data);
    run(LIBXSMM_DNN_COMPUTE_KIND_FWD);
  }
  void train(const float* x_data, const float* dy_data, float* y_data, float* dx_data) {
    pack();
    infer(x_data, y_data);
    libxsmm_dnn_set_tensor_data_ptr(dy, dy_data);
    libxsmm_dnn_set_tensor_data_ptr(dx, dx_data);
    run(LIBXSMM_DNN_COMPUTE_KIND_BWDUPD);
  }
};

}  // namespace

extern "C" {
const char* peer_version() { return LIBXSMM_CONFIG_VERSION; }
void* peer_new(int threads, long N, long T, long I, long H, int training, const float* w_ih,
               const float* w_hh, const float* bias) {
  if (!block_of(I) || !block_of(H)) return nullptr;
  Layer* const layer = new Layer(threads, N, T, I, H, training != 0, w_ih, w_hh, bias);
  if (!layer->failed) return layer;
  delete layer;
  return nullptr;
}
void peer_delete(void* layer) { delete static_cast<Layer*>(layer); }
void peer_infer(void* layer, const float* x, float* y) { static_cast<Layer*>(layer)->infer(x, y); }
void peer_train(void* layer, const float* x, const float* dy, float* y, float* dx) {
  static_cast<Layer*>(layer)->train(x, dy, y, dx);
}
}
