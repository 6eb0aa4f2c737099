// Matrix products as jobs of several threads: each takes a share. No choice here changes a bit of any result.
#pragma once

#include "kernels/table.h"
#include "runtime/threads.h"

namespace fusedlstm {

// Elements of packed panels for a (K, N) matrix.
inline ptrdiff_t packed_size(ptrdiff_t K, ptrdiff_t N, ptrdiff_t panel) {
  return (N + panel - 1) / panel * panel * K;
}

constexpr ptrdiff_t kRowsBetweenPolls = 4096;  // a long product can be interrupted after so many rows

// A thread's share of one matrix product: rows when there are enough of them, else panels of columns.
template <class T>
void gemm_share(const Kernels<T>& k, Gemm<T> g, Team& team) {
  if (g.M >= kTileRows * team.threads()) {
    const Share rows = share_of(g.M, team.thread(), team.threads(), kTileRows);
    g.M = rows.size();
    g.a += rows.begin * g.a_row;
    if (g.init) g.init += rows.begin * g.init_row;
    g.c += rows.begin * g.c_row;
  } else {
    const Share columns = share_of(g.N, team.thread(), team.threads(), k.panel);
    g.N = columns.size();
    g.b += columns.begin * g.K;
    if (g.init) g.init += columns.begin;
    g.c += columns.begin;
  }
  if (g.N <= 0) return;
  for (ptrdiff_t left = g.M; left > 0; left -= kRowsBetweenPolls) {
    g.M = left < kRowsBetweenPolls ? left : kRowsBetweenPolls;
    k.gemm(g);
    team.poll();
    g.a += g.M * g.a_row;
    if (g.init) g.init += g.M * g.init_row;
    g.c += g.M * g.c_row;
  }
}

// A thread's share of C (M, N) += A^T B: columns of A. `scratch` is the thread's own.
template <class T>
void gemm_transposed_share(const Kernels<T>& k, GemmTransposed<T> g, Team& team) {
  const Share m = share_of(g.M, team.thread(), team.threads(), kTileRows);
  g.M = m.size();
  g.a += m.begin;
  g.c += m.begin * g.c_row;
  if (g.M <= 0) return;
  for (ptrdiff_t left = g.R; left > 0; left -= kRowsBetweenPolls) {
    g.R = left < kRowsBetweenPolls ? left : kRowsBetweenPolls;
    k.gemm_transposed(g);
    team.poll();
    if (g.a_rows)
      g.a_rows += g.R;
    else
      g.a += g.R * g.a_row;
    if (g.b_rows)
      g.b_rows += g.R;
    else
      g.b += g.R * g.b_row;
  }
}

}  // namespace fusedlstm
