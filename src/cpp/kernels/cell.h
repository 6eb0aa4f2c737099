// The LSTM cell of M rows and a range of hidden units, forward and backward.
//
//   a = W x + b + R h_{t-1}                   four gates, order i f g o; W x + b comes in as `input`
//   i, f, o = sigmoid(a_i, a_f, a_o)          g = tanh(a_g)
//   c_t = f * c_{t-1} + i * g                 h_t = o * tanh(c_t)          Gers, Schmidhuber, Cummins 2000
//
// The sum of a gate is input, then h by k. R is packed in blocks of kLanes units x 4 gates, so that one
// register tile holds all gates of its units; they go through an L1 scratch tile to the gate formulas.
#pragma once

#include "kernels/gemm.h"
#include "kernels/ticks.h"
#include "kernels/vecmath.h"

namespace fusedlstm {
namespace {

// Columns of block u, side by side: i, f, g, o of units u .. u + kLanes - 1.
template <class T>
void pack_recurrent(ptrdiff_t H, ptrdiff_t H_pad, const T* weight_hh, T* packed) {
  constexpr ptrdiff_t W = kLanes<T>;
  for (ptrdiff_t u = 0; u < H_pad; u += W)
    for (ptrdiff_t gate = 0; gate < 4; ++gate)
      pack_vector<T>(H, u < H ? smaller(W, H - u) : 0, weight_hh + (gate * H + u) * H, H,
                     packed + u * 4 * H + gate * W, 4 * W);
}

template <class T>
FUSEDLSTM_INLINE void store_gates(T* gates, ptrdiff_t H_pad, Vec<T> i, Vec<T> f, Vec<T> g, Vec<T> o) {
  store<T>(gates, i);
  store<T>(gates + H_pad, f);
  store<T>(gates + 2 * H_pad, g);
  store<T>(gates + 3 * H_pad, o);
}

template <class T>
FUSEDLSTM_INLINE Vec<T> next_c(Vec<T> i, Vec<T> f, Vec<T> g, Vec<T> c_prev) {
  return fma(f, c_prev, i * g);
}

enum class Cell { kStep, kGates };  // all of it, or the activations only

// `a` holds the four sums of the units; of a whole step it keeps o in the place of its sum.
template <class T, Cell Part>
FUSEDLSTM_INLINE void gates_forward(const CellForward<T>& s, ptrdiff_t m, ptrdiff_t u, T* a) {
  constexpr int W = kLanes<T>;
  Vec<T> x[] = {load(a), load(a + W), load(a + 3 * W), load(a + 2 * W)};
  activations<T, 3>(x);
  const Vec<T> i = x[0], f = x[1], o = x[2], g = x[3];
  if (Part == Cell::kStep) {
    store<T>(s.c + m * s.c_row + u, next_c<T>(i, f, g, load(s.c_prev + m * s.c_row + u)));
    store<T>(a + 3 * W, o);
  }
  if (s.gates) store_gates<T>(s.gates + m * s.gates_row + u, s.H_pad, i, f, g, o);
}

// Of N rows; their sums lie a_row apart.
template <class T, int N>
FUSEDLSTM_INLINE void h_forward(const CellForward<T>& s, ptrdiff_t m, ptrdiff_t u, const T* a,
                                ptrdiff_t a_row) {
  Vec<T> t[N];
  FUSEDLSTM_EACH t[j] = load(s.c + (m + j) * s.c_row + u);
  activations<T, 0>(t);
  FUSEDLSTM_EACH store<T>(s.h + (m + j) * s.h_row + u, load(a + j * a_row + 3 * kLanes<T>) * t[j]);
}

// `quarter` of the next units' weights is fetched meanwhile.
template <class T, Cell Part, int M, int Blocks>
void cell_tile(const CellForward<T>& s, ptrdiff_t m0, ptrdiff_t u, ptrdiff_t quarter) {
  constexpr int W = kLanes<T>, block = 4 * W;
  constexpr int P = 2 * Blocks < kTilePanels ? 2 * Blocks : (M == 1 ? 2 * Blocks : kTilePanels);
  PartTimer timer(s.ticks);
  // What the product before them gives time to fetch: the states of these rows, the sums of the next.
  for (int m = 0; m < M; ++m) {
    if (Part == Cell::kStep) __builtin_prefetch(s.c_prev + (m0 + m) * s.c_row + u);
    for (int v = 0; m0 + M + m < s.M && v < Blocks * 4; ++v)
      __builtin_prefetch(s.input + (m0 + M + m) * s.input_row + (v % 4) * s.H_pad + u + (v / 4) * W);
  }
  const ptrdiff_t next_unit =
      s.descending ? (u > s.unit_begin ? u - W : u) : (u + W < s.unit_end ? u + W : s.unit_begin);
  T a[M * Blocks * block];  // [row][block][gate][lane]
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < Blocks * 4; ++v)
      store<T>(a + (m * Blocks * 4 + v) * W,
               load(s.input + (m0 + m) * s.input_row + (v % 4) * s.H_pad + u + (v / 4) * W));
  for (int panel = 0; s.recurrent && panel < 2 * Blocks; panel += P) {
    T* part = a + panel * kPanel<T>;
    tile<T, M, 2 * P, LayoutA::kRows, LayoutB::kBlocks>(
        s.H, s.h_prev + m0 * s.h_row, s.h_row,
        s.recurrent + (u + panel / 2 * W) * 4 * s.H + panel % 2 * kPanel<T>, block * s.H, part,
        Blocks * block, part, Blocks * block, s.recurrent + (next_unit * 4 + quarter * W) * s.H);
  }
  timer.end(&StepTicks::recurrent);
  // First all gates, then all h: what waits is side by side.
  for (int m = 0; m < M; ++m)
    for (int b = 0; b < Blocks; ++b)
      gates_forward<T, Part>(s, m0 + m, u + b * W, a + (m * Blocks + b) * block);
  constexpr int rows = M % 3 == 0 ? 3 : M % 2 == 0 ? 2 : 1;
  for (int m = 0; Part == Cell::kStep && m < M; m += rows)
    for (int b = 0; b < Blocks; ++b)
      h_forward<T, rows>(s, m0 + m, u + b * W, a + (m * Blocks + b) * block, Blocks * block);
  timer.end(&StepTicks::gates);
}

template <int N>
struct Blocks {
  static constexpr int count = N;
};

// tile(u, Blocks<n>) for all units in the order of `descending`, n = Most blocks of kLanes units at a time
// and the rest one by one.
template <class T, int Most, class Tile>
FUSEDLSTM_INLINE void for_unit_blocks(const CellForward<T>& s, Tile tile) {
  constexpr int W = kLanes<T>;
  const ptrdiff_t units = s.unit_end - s.unit_begin;
  const auto at = [&](ptrdiff_t done, int blocks) {
    return s.descending ? s.unit_end - done - blocks * W : s.unit_begin + done;
  };
  ptrdiff_t done = 0;
  for (; done + Most * W <= units; done += Most * W) tile(at(done, Most), Blocks<Most>{});
  for (; Most > 1 && done < units; done += W) tile(at(done, 1), Blocks<1>{});
}

template <class T, Cell Part, int M = kTileRows>
FUSEDLSTM_INLINE void rows_tile(const CellForward<T>& s, ptrdiff_t m, ptrdiff_t height, ptrdiff_t u,
                                ptrdiff_t quarter) {
  if (height == M) return cell_tile<T, Part, M, 1>(s, m, u, quarter);
  if constexpr (M > 1) rows_tile<T, Part, M - 1>(s, m, height, u, quarter);
}

template <class T, Cell Part>
void cell_rows(const CellForward<T>& s) {
  if (s.M == 1) {  // one row: two blocks at a time, enough chains to hide the latency of fma
    for_unit_blocks<T, 2>(s,
                          [&](ptrdiff_t u, auto blocks) { cell_tile<T, Part, 1, blocks.count>(s, 0, u, 0); });
    return;
  }
  for_unit_blocks<T, 1>(s, [&](ptrdiff_t u, auto) {
    for (ptrdiff_t m = 0, height, quarter = 0; m < s.M; m += height, quarter = (quarter + 1) % 4) {
      height = tile_rows(s.M - m, kTileRows);
      rows_tile<T, Part>(s, m, height, u, quarter);
    }
  });
}

template <class T>
void cell_forward(const CellForward<T>& s) {
  cell_rows<T, Cell::kStep>(s);
}

template <class T>
void cell_gates(const CellForward<T>& s) {
  cell_rows<T, Cell::kGates>(s);
}

template <class T>
void cell_states(const CellForward<T>& s) {
  for (ptrdiff_t m = 0; m < s.M; ++m) {
    const T* const gates = s.gates + m * s.gates_row;
    for (ptrdiff_t u = s.unit_begin; u < s.unit_end; u += kLanes<T>)
      store<T>(s.c + m * s.c_row + u,
               next_c<T>(load(gates + u), load(gates + s.H_pad + u), load(gates + 2 * s.H_pad + u),
                         load(s.c_prev + m * s.c_row + u)));
  }
}

// Gates in 16 bits: i, f, o of (0, 1) in steps of 1/65535, g of (-1, 1) in steps of 1/32767. A bfloat16 would
// round f = 0.999 to 1 and lose all of f (1 - f).
constexpr int kCandidate = 2;  // the place of g

template <class T>
void narrow_gates(ptrdiff_t H_pad, const T* gates, uint16_t* narrow) {
  for (int gate = 0; gate < 4; ++gate, gates += H_pad, narrow += H_pad) {
    const T steps = gate == kCandidate ? T(32767) : T(65535);
    for (ptrdiff_t u = 0; u < H_pad; ++u) {
      const T a = gates[u] == gates[u] ? gates[u] * steps : T(0);  // of NaN, c and h tell backward
      narrow[u] = static_cast<uint16_t>(static_cast<int32_t>(a + (a < 0 ? T(-0.5) : T(0.5))));
    }
  }
}

template <class T>
void widen_gates(ptrdiff_t H_pad, const uint16_t* narrow, T* gates) {
  for (int gate = 0; gate < 4; ++gate, gates += H_pad, narrow += H_pad) {
    if (gate == kCandidate)
      for (ptrdiff_t u = 0; u < H_pad; ++u)
        gates[u] = static_cast<T>(static_cast<int16_t>(narrow[u])) / T(32767);
    else
      for (ptrdiff_t u = 0; u < H_pad; ++u)
        gates[u] = static_cast<T>(static_cast<int32_t>(narrow[u])) / T(65535);
  }
}

// With t = tanh(c_t), dh the derivative of h_t and dc that of c_t from later steps:
//   dc += dh * o * (1 - t^2)               do = dh * t * o (1 - o)
//   di = dc * g * i (1 - i)                df = dc * c_{t-1} * f (1 - f)     dg = dc * i * (1 - g^2)
//   dc_{t-1} = dc * f
template <class T>
void cell_backward(const CellBackward<T>& s) {
  constexpr int W = kLanes<T>;
  const Vec<T> one = broadcast<T>(1);
  for (ptrdiff_t m = 0; m < s.M; ++m) {
    for (ptrdiff_t u = s.unit_begin; u < s.unit_end; u += W) {
      T* gates = s.gates + m * s.gates_row + u;
      const Vec<T> i = load(gates), f = load(gates + s.H_pad);
      const Vec<T> g = load(gates + 2 * s.H_pad), o = load(gates + 3 * s.H_pad);
      const Vec<T> t = tanh<T>(load(s.c + m * s.c_row + u));
      Vec<T> dh = load(s.dh + m * s.d_row + u);
      if (s.dy) dh = dh + load(s.dy + m * s.dy_row + u);
      const Vec<T> dc = fma(dh * o, (one - t) * (one + t), load(s.dc + m * s.d_row + u));
      store<T>(gates, dc * g * (i * (one - i)));
      store<T>(gates + s.H_pad, dc * load(s.c_prev + m * s.c_row + u) * (f * (one - f)));
      store<T>(gates + 2 * s.H_pad, dc * i * ((one - g) * (one + g)));
      store<T>(gates + 3 * s.H_pad, dh * t * (o * (one - o)));
      store<T>(s.dc + m * s.d_row + u, dc * f);
    }
  }
}

}  // namespace
}  // namespace fusedlstm
