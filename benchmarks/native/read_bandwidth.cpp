// Prints the GB/s that `threads` cores together read, each from a buffer of `bytes` of its own, again and
// again: the bandwidth of the cache level that holds it. Compiled by harness.py. usage: read_bandwidth
// threads bytes
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "vectors.h"

typedef std::uint64_t Vec __attribute__((vector_size(kBytes)));

std::uint64_t read_all(const std::vector<Vec>& buffer, long passes) {
  constexpr std::size_t kAtOnce = 8;
  Vec sum[kAtOnce] = {};
  for (long pass = 0; pass < passes; ++pass) {
    for (std::size_t line = 0; line + kAtOnce <= buffer.size(); line += kAtOnce)
#pragma GCC unroll 8
      for (std::size_t k = 0; k < kAtOnce; ++k) sum[k] += buffer[line + k];
    asm volatile("" ::: "memory");  // the next pass reads again
  }
  std::uint64_t result = 0;
  for (const Vec& part : sum)
    for (std::size_t k = 0; k < sizeof(Vec) / sizeof part[0]; ++k) result += part[k];
  return result;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int threads = std::atoi(argv[1]);
  const long bytes = std::atol(argv[2]) / 512 * 512;
  if (threads < 1 || bytes < 512) return 2;
  const long passes = 1 + 2'000'000'000 / bytes;  // long beside the start of a thread
  std::vector<std::vector<Vec>> buffers(
      static_cast<std::size_t>(threads),
      std::vector<Vec>(static_cast<std::size_t>(bytes) / sizeof(Vec), Vec{} + 1));
  std::vector<std::uint64_t> sums(buffers.size());
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    std::vector<std::thread> pool;
    const auto start = std::chrono::steady_clock::now();
    for (std::size_t t = 0; t < buffers.size(); ++t)
      pool.emplace_back([&, t] { sums[t] = read_all(buffers[t], passes); });
    for (auto& thread : pool) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const double rate =
        1.0 * threads * static_cast<double>(bytes) * static_cast<double>(passes) / seconds.count();
    if (rate > best) best = rate;
  }
  volatile std::uint64_t sink = 0;
  for (const auto sum : sums) sink = sink + sum;
  std::printf("%.2f\n", best * 1e-9);
}
