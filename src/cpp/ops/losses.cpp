// Losses and their gradients. Threads share rows; sums over rows are made afterwards, in the order of rows.
#include <algorithm>
#include <vector>

#include "ops/linear_gradients.h"

namespace fusedlstm {
namespace {

constexpr ptrdiff_t kLogitBytes = 16 << 20;  // of logits held at a time

// -sum_j q_j log p_j of one row, with q = (1 - epsilon) one hot + epsilon / V (Szegedy et al. 2016); with d,
// d = scale * (softmax - q), which may lie over the logits.
template <class T>
T row_loss(const Kernels<T>& k, ptrdiff_t V, const T* logits, int32_t target, bool counted, T scale,
           T epsilon, T* d) {
  if (!counted) {
    if (d) std::fill(d, d + V, T(0));
    return T(0);
  }
  T largest;
  const T z_target = logits[target];
  // mean_j (-log p_j) = -log p_target - mean_j (z_j - z_target)
  const T smoothing =
      epsilon > T(0) ? -epsilon / static_cast<T>(V) * k.sum_of_differences(V, logits, z_target) : T(0);
  const T log_sum = k.softmax_row(V, logits, scale, d, &largest);
  if (d && epsilon > T(0)) {
    k.add_constant(V, -scale * epsilon / static_cast<T>(V), d);
    d[target] -= scale * (T(1) - epsilon);
  } else if (d) {
    d[target] -= scale;
  }
  return (log_sum - (z_target - largest)) + smoothing;
}

// The largest, exp and the sum; with a gradient, its division and difference.
template <class T>
Work loss_work(ptrdiff_t rows, ptrdiff_t V, bool gradient) {
  return elements_work(rows * V, gradient ? 26 : 24, (gradient ? 2 : 1) * sizeof(T));
}

template <class T>
LossSum total(const std::vector<T>& nll, const int32_t* targets, int32_t ignore_index) {
  LossSum sum{0, 0};
  for (size_t r = 0; r < nll.size(); ++r) {
    sum.nll += static_cast<double>(nll[r]);
    sum.counted += targets[r] != ignore_index;
  }
  return sum;
}

}  // namespace

template <class T>
LossSum linear_cross_entropy(const PackedLinear<T>& w, ptrdiff_t R, const T* x, const int32_t* targets,
                             int32_t ignore_index, T scale, T* dx, T* d_weight, T* d_bias, const Poll& poll,
                             T label_smoothing) {
  const Kernels<T>& k = w.kernels();
  const ptrdiff_t V = w.outputs, I = w.inputs, pitch = row_pitch<T>(V);
  const bool gradient = dx || d_weight || d_bias;
  const ptrdiff_t fit = kLogitBytes / static_cast<ptrdiff_t>(sizeof(T)) / pitch;
  const ptrdiff_t chunk = std::min(std::max<ptrdiff_t>(R, 1), std::clamp<ptrdiff_t>(fit, 64, 1024));
  Buffer<T> logits(chunk * pitch);
  std::vector<T> nll(static_cast<size_t>(R));
  LinearGradients<T> gradients(w, chunk, gradient ? chunk : 0, d_weight != nullptr);
  run_job(R * V * I < (1 << 16) ? 1 : num_threads(), poll, [&](Team& team) {
    for (ptrdiff_t r0 = 0; r0 < R; r0 += chunk) {
      const ptrdiff_t rows = std::min(chunk, R - r0);
      const T* const x_rows = x + r0 * I;
      round_for_share(team, w, rows, x_rows, I, gradients.low_x);
      linear_share(team, w, rows, x_rows, I, gradients.low_x, logits.data(), pitch);
      team.barrier();
      {
        const Share own = share_of(rows, team.thread(), team.threads());
        const Scope scope(Phase::kLoss, -1, [&] { return loss_work<T>(own.size(), V, gradient); });
        for (ptrdiff_t r = own.begin; r < own.end; ++r) {
          T* const z = logits.data() + r * pitch;
          const int32_t target = targets[r0 + r];
          nll[static_cast<size_t>(r0 + r)] = row_loss(k, V, z, target, target != ignore_index, scale,
                                                      label_smoothing, gradient ? z : nullptr);
        }
      }
      team.barrier();
      if (!gradient) continue;
      gradients.share(team, rows, x_rows, logits.data(), pitch, dx ? dx + r0 * I : nullptr, d_weight, d_bias);
      team.barrier();
    }
  });
  return total(nll, targets, ignore_index);
}

template <class T>
LossSum cross_entropy(ptrdiff_t R, ptrdiff_t V, const T* logits, const int32_t* targets, int32_t ignore_index,
                      T scale, T* d_logits, const Poll& poll, T label_smoothing) {
  const Kernels<T>& k = kernels_of<T>(current_level());
  std::vector<T> nll(static_cast<size_t>(R));
  run_job(R * V < (1 << 14) ? 1 : 0, poll, [&](Team& team) {
    const Share own = share_of(R, team.thread(), team.threads());
    const Scope scope(Phase::kLoss, -1, [&] { return loss_work<T>(own.size(), V, d_logits != nullptr); });
    for (ptrdiff_t r = own.begin; r < own.end; ++r)
      nll[static_cast<size_t>(r)] = row_loss(k, V, logits + r * V, targets[r], targets[r] != ignore_index,
                                             scale, label_smoothing, d_logits ? d_logits + r * V : nullptr);
  });
  return total(nll, targets, ignore_index);
}

namespace {

// Adds value(begin, size) of blocks of kSumBlock elements in order, whichever thread made them. `each`: the
// work of an element.
template <class Value>
double sum_over_blocks(ptrdiff_t n, Phase phase, Work each, const Value& value) {
  std::vector<double> part(static_cast<size_t>((n + kSumBlock - 1) / kSumBlock));
  run_job(n < (1 << 18) ? 1 : 0, nullptr, [&](Team& team) {
    const Share blocks = share_of(static_cast<ptrdiff_t>(part.size()), team.thread(), team.threads());
    const Scope scope(phase, -1, [&] {
      return elements_work(std::min(n, blocks.end * kSumBlock) - blocks.begin * kSumBlock, each.flops,
                           each.bytes);
    });
    for (ptrdiff_t b = blocks.begin; b < blocks.end; ++b)
      part[static_cast<size_t>(b)] = value(b * kSumBlock, std::min(kSumBlock, n - b * kSumBlock));
  });
  double sum = 0;
  for (const double p : part) sum += p;
  return sum;
}

}  // namespace

template <class T>
double mean_squared_error(ptrdiff_t n, const T* y, const T* target, T* dy) {
  if (n == 0) return 0;
  const Kernels<T>& k = kernels_of<T>(current_level());
  const T factor = T(2) / static_cast<T>(n);
  return sum_over_blocks(n, Phase::kLoss, {4, 3 * sizeof(T)},
                         [&](ptrdiff_t begin, ptrdiff_t size) {
                           return k.squared_error(size, y + begin, target + begin, factor,
                                                  dy ? dy + begin : nullptr);
                         }) /
         static_cast<double>(n);
}

template <class T>
double gradient_norm(ptrdiff_t n, const T* gradients) {
  const Kernels<T>& k = kernels_of<T>(current_level());
  return __builtin_sqrt(sum_over_blocks(
      n, Phase::kOptimiser, {2, sizeof(T)},
      [&](ptrdiff_t begin, ptrdiff_t size) { return k.sum_of_squares(size, gradients + begin); }));
}

#define FUSEDLSTM_INSTANTIATE(T)                                                                     \
  template LossSum linear_cross_entropy(const PackedLinear<T>&, ptrdiff_t, const T*, const int32_t*, \
                                        int32_t, T, T*, T*, T*, const Poll&, T);                     \
  template LossSum cross_entropy(ptrdiff_t, ptrdiff_t, const T*, const int32_t*, int32_t, T, T*,     \
                                 const Poll&, T);                                                    \
  template double mean_squared_error(ptrdiff_t, const T*, const T*, T*);                             \
  template double gradient_norm(ptrdiff_t, const T*);
FUSEDLSTM_INSTANTIATE(float)
FUSEDLSTM_INSTANTIATE(double)
#undef FUSEDLSTM_INSTANTIATE

}  // namespace fusedlstm
