// One step of one layer in one pass: input product, recurrent product and gates.
//
//   a = b + W x_t + R h_{t-1}      one chain of fma per gate: bias, x by k, h by k
//
// A block of units keeps the chains of all its gates in registers from the bias to the gate formulas. The
// weights are read where sequences read them: W from panels of [4][H_pad] columns, R from blocks of units.
#pragma once

#include "kernels/cell.h"

namespace fusedlstm {
namespace {

// Blocks of units at a time: a single row needs two for enough chains to hide the latency of fma, and two
// rows of two blocks fit where there are 32 registers.
template <int M>
constexpr int kStepBlocks = M == 1 ? 2 : kTilePanels;

template <class T, int M, int V>
FUSEDLSTM_INLINE void chains(ptrdiff_t K, const T* x, ptrdiff_t x_row, const T* const (&weights)[V],
                             ptrdiff_t weights_row, Vec<T> (&a)[M][V]) {
  const T* w_k[V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) w_k[v] = weights[v];
#pragma GCC unroll 4
  for (ptrdiff_t k = 0; k < K; ++k) {
    Vec<T> x_k[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) x_k[m] = broadcast<T>(x[m * x_row + k]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const Vec<T> w = load(w_k[v]);
      w_k[v] += weights_row;
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) a[m][v] = fma(x_k[m], w, a[m][v]);
    }
  }
}

template <class T, int M, int Blocks>
__attribute__((noinline)) void step_tile(const StepForward<T>& s, ptrdiff_t u) {
  constexpr int W = kLanes<T>, V = 4 * Blocks;
  constexpr ptrdiff_t N = kPanel<T>;
  const CellForward<T>& cell = s.cell;
  PartTimer timer(cell.ticks);
  Vec<T> a[M][V];  // [row][block, gate]
  const T *w[V], *r[V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
    const ptrdiff_t unit = u + v / 4 * W, gate = v % 4, column = gate * cell.H_pad + unit;
    w[v] = s.weights + column / N * (s.I * N) + column % N;
    r[v] = cell.recurrent + unit * 4 * cell.H + gate * W;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) a[m][v] = load(cell.input + m * cell.input_row + column);
  }
  chains<T, M, V>(s.I, s.x, s.x_row, w, N, a);
  if (s.I > 0) timer.end(&StepTicks::input);
  chains<T, M, V>(cell.H, cell.h_prev, cell.h_row, r, 4 * W, a);
  timer.end(&StepTicks::recurrent);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {  // the gates of all blocks side by side: each alone is one long chain
    const ptrdiff_t at = m * cell.c_row + u;
    Vec<T> c[Blocks];
#pragma GCC unroll 16
    for (int b = 0; b < Blocks; ++b) {
      const Vec<T> i = sigmoid<T>(a[m][4 * b]), f = sigmoid<T>(a[m][4 * b + 1]), g = tanh<T>(a[m][4 * b + 2]);
      c[b] = fma(f, load(cell.c_prev + at + b * W), i * g);
    }
#pragma GCC unroll 16
    for (int b = 0; b < Blocks; ++b) {
      store<T>(cell.c + at + b * W, c[b]);
      const Vec<T> h = sigmoid<T>(a[m][4 * b + 3]) * tanh<T>(c[b]);
      store<T>(cell.h + m * cell.h_row + u + b * W, h);
    }
  }
  timer.end(&StepTicks::gates);
}

template <class T, int M>
void step_rows(const StepForward<T>& s) {
  for_unit_blocks<T, kStepBlocks<M>>(s.cell,
                                     [&](ptrdiff_t u, auto blocks) { step_tile<T, M, blocks.count>(s, u); });
}

template <class T>
void step_forward(const StepForward<T>& s) {
  if (s.cell.M == 1) step_rows<T, 1>(s);
  if (s.cell.M == 2) step_rows<T, 2>(s);
}

}  // namespace
}  // namespace fusedlstm
