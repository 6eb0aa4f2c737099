// One pass over the flat buffers; each element on its own, so threads share ranges.
#include <algorithm>

#include "ops/ops.h"
#include "runtime/profiler.h"

namespace fusedlstm {
namespace {

// `each`: the work of an element.
template <class T, class Pass>
void over_ranges(ptrdiff_t n, Work each, const Pass& pass) {
  const Kernels<T>& k = kernels_of<T>(current_level());
  run_job(n < (1 << 16) ? 1 : 0, nullptr, [&](Team& team) {
    const Share range = share_of(n, team.thread(), team.threads(), 4096);
    const Scope scope(Phase::kOptimiser, -1,
                      [&] { return elements_work(range.size(), each.flops, each.bytes); });
    if (range.size() > 0) pass(k, range.begin, range.size());
  });
}

}  // namespace

template <class T>
void zero_gradients(ptrdiff_t n, T* gradients) {
  over_ranges<T>(n, {0, sizeof(T)}, [&](const Kernels<T>&, ptrdiff_t begin, ptrdiff_t size) {
    std::fill_n(gradients + begin, size, T(0));
  });
}

template <class T>
void sgd_step(ptrdiff_t n, const SgdStep<T>& step, const T* gradients, T* velocity, T* parameters) {
  over_ranges<T>(n, {6, 5 * sizeof(T)}, [&](const Kernels<T>& k, ptrdiff_t begin, ptrdiff_t size) {
    k.sgd(size, step, gradients + begin, velocity ? velocity + begin : nullptr, parameters + begin);
  });
}

template <class T>
void adam_step(ptrdiff_t n, const AdamStep<T>& step, const T* gradients, T* m, T* v, T* parameters) {
  over_ranges<T>(n, {14, 7 * sizeof(T)}, [&](const Kernels<T>& k, ptrdiff_t begin, ptrdiff_t size) {
    k.adam(size, step, gradients + begin, m + begin, v + begin, parameters + begin);
  });
}

#define FUSEDLSTM_INSTANTIATE(T)                                          \
  template void zero_gradients(ptrdiff_t, T*);                            \
  template void sgd_step(ptrdiff_t, const SgdStep<T>&, const T*, T*, T*); \
  template void adam_step(ptrdiff_t, const AdamStep<T>&, const T*, T*, T*, T*);
FUSEDLSTM_INSTANTIATE(float)
FUSEDLSTM_INSTANTIATE(double)
#undef FUSEDLSTM_INSTANTIATE

}  // namespace fusedlstm
