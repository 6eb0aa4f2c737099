// Prints the GF/s of fused multiply-adds that `threads` cores reach together out of registers: the ceiling
// that a benchmark's figure is a fraction of. Compiled by harness.py for the machine it runs on. usage:
// fma_peak threads f32|f64
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kChains = 12;  // more than latency x throughput of any current core, fewer than its registers

template <class T>
double flops_of_loop(long iterations) {
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
  volatile T sink = 0;
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sink = sink + sum[i][0];
  return 2.0 * iterations * kChains * (kBytes / sizeof(T));
}

template <class T>
double giga_flops(int threads) {
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    std::vector<std::thread> pool;
    std::vector<double> flops(threads);
    const auto start = std::chrono::steady_clock::now();
    for (int t = 0; t < threads; ++t) pool.emplace_back([&, t] { flops[t] = flops_of_loop<T>(40'000'000); });
    for (auto& thread : pool) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    double total = 0;
    for (double f : flops) total += f;
    if (total / seconds.count() > best) best = total / seconds.count();
  }
  return best * 1e-9;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int threads = std::atoi(argv[1]);
  if (threads < 1) return 2;
  std::printf("%.1f\n",
              std::strcmp(argv[2], "f64") ? giga_flops<float>(threads) : giga_flops<double>(threads));
}
