// The width of a vector, and fused multiply-adds out of registers: for programs that measure what a machine
// can do at most.
#pragma once

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kChains = 12;  // more than latency x throughput of any current core, fewer than its registers

volatile double sink;

template <class T>
double fma(long iterations) {
  typedef T Vec __attribute__((vector_size(kBytes)));
  Vec sum[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum[i] = Vec{} + T(i);
  Vec factor = Vec{} + T(0.999999), term = Vec{} + T(5e-7);
  for (long n = 0; n < iterations; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * factor + term;  // -ffp-contract=fast makes it one fma
    asm volatile("");                                                   // keeps the iterations
  }
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sink = sink + static_cast<double>(sum[i][0]);
  return 2.0 * static_cast<double>(iterations) * kChains * (kBytes / sizeof(T));
}

}  // namespace
