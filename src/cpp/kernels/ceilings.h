// Loops that do nothing but what bounds the others: multiply-adds out of registers, and reading memory.
#pragma once

#include "kernels/simd.h"
#include "kernels/table.h"

namespace fusedlstm {
namespace {

// As many independent chains as a product's tile has sums. Returns the FLOPs.
template <class T>
double multiply_adds(ptrdiff_t iterations) {
  constexpr int chains = 2 * kTilePanels * kTileRows;
  Vec<T> sum[chains];
  for (int c = 0; c < chains; ++c) sum[c] = broadcast<T>(static_cast<T>(c));
  const Vec<T> factor = broadcast<T>(T(0.999999)), term = broadcast<T>(T(5e-7));
  for (ptrdiff_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 32
    for (int c = 0; c < chains; ++c) sum[c] = fma(sum[c], factor, term);
  }
  __asm__ volatile("" : : "r"(&sum) : "memory");  // somebody could be looking at them
  return 2.0 * static_cast<double>(iterations) * chains * kLanes<T>;
}

template <class T>
void read(ptrdiff_t n, const T* x) {
  constexpr int W = kLanes<T>, at_once = 8;
  Vec<T> sum[at_once] = {};
  for (ptrdiff_t j = 0; j + at_once * W <= n; j += at_once * W) {
#pragma GCC unroll 8
    for (int v = 0; v < at_once; ++v) sum[v] += load(x + j + v * W);
  }
  __asm__ volatile("" : : "r"(&sum) : "memory");
}

}  // namespace
}  // namespace fusedlstm
