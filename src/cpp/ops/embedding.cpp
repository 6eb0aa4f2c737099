#include <algorithm>

#include "ops/ops.h"
#include "runtime/profiler.h"

namespace fusedlstm {

template <class T>
void embedding_forward(ptrdiff_t R, ptrdiff_t E, const int32_t* ids, const T* weight, T* y) {
  run_job(R * E < (1 << 16) ? 1 : 0, nullptr, [&](Team& team) {
    const Share rows = share_of(R, team.thread(), team.threads());
    const Scope scope(Phase::kCopy, -1, [&] { return elements_work(rows.size() * E, 0, 2 * sizeof(T)); });
    for (ptrdiff_t r = rows.begin; r < rows.end; ++r)
      std::copy(weight + ids[r] * E, weight + (ids[r] + 1) * E, y + r * E);
  });
}

// Rows of the same id are added in the order of r: threads share columns, not rows.
template <class T>
void embedding_backward(ptrdiff_t R, ptrdiff_t E, const int32_t* ids, const T* dy, T* d_weight) {
  const Kernels<T>& k = kernels_of<T>(current_level());
  run_job(R * E < (1 << 16) ? 1 : 0, nullptr, [&](Team& team) {
    const Share columns = share_of(E, team.thread(), team.threads(), 16);
    const Scope scope(Phase::kWeightGradient, -1,
                      [&] { return elements_work(R * columns.size(), 1, 3 * sizeof(T)); });
    for (ptrdiff_t r = 0; r < R; ++r)
      k.add(columns.size(), dy + r * E + columns.begin, d_weight + ids[r] * E + columns.begin);
  });
}

template <class T>
void dropout(ptrdiff_t R, ptrdiff_t C, T rate, uint64_t seed, uint32_t stream, const T* x, T* y) {
  const Kernels<T>& k = kernels_of<T>(current_level());
  run_job(R * C < (1 << 14) ? 1 : 0, nullptr, [&](Team& team) {
    const Share rows = share_of(R, team.thread(), team.threads());
    const Scope scope(Phase::kCopy, -1, [&] { return elements_work(rows.size() * C, 0, 2 * sizeof(T)); });
    for (ptrdiff_t r = rows.begin; r < rows.end; ++r)
      k.dropout_row(C, {seed, stream}, static_cast<uint32_t>(r), 0, rate, x + r * C, y + r * C);
  });
}

#define FUSEDLSTM_INSTANTIATE(T)                                                        \
  template void embedding_forward(ptrdiff_t, ptrdiff_t, const int32_t*, const T*, T*);  \
  template void embedding_backward(ptrdiff_t, ptrdiff_t, const int32_t*, const T*, T*); \
  template void dropout(ptrdiff_t, ptrdiff_t, T, uint64_t, uint32_t, const T*, T*);
FUSEDLSTM_INSTANTIATE(float)
FUSEDLSTM_INSTANTIATE(double)
#undef FUSEDLSTM_INSTANTIATE

}  // namespace fusedlstm
