// Prints the GB/s that `threads` cores together read from a buffer of `bytes` each, read again and again: the
// bandwidth of the cache level that holds it. usage: ceilings threads bytes
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

typedef std::uint64_t Vec __attribute__((vector_size(64)));

std::uint64_t read_all(const std::vector<std::uint64_t>& buffer, long passes) {
  const std::size_t lines = buffer.size() / 8;
  Vec sum[4] = {};
  for (long pass = 0; pass < passes; ++pass) {
    for (std::size_t line = 0; line + 4 <= lines; line += 4)
      for (std::size_t k = 0; k < 4; ++k) {
        Vec value;
        __builtin_memcpy(&value, buffer.data() + (line + k) * 8, sizeof value);
        sum[k] += value;
      }
    asm volatile("" ::: "memory");  // the next pass reads again
  }
  const Vec total = sum[0] + sum[1] + sum[2] + sum[3];
  std::uint64_t result = 0;
  for (int k = 0; k < 8; ++k) result += total[k];
  return result;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int threads = std::atoi(argv[1]);
  const long bytes = std::atol(argv[2]);
  if (threads < 1 || bytes < 256) return 2;
  const long passes = 1 + 400'000'000 / bytes;
  std::vector<std::vector<std::uint64_t>> buffers(threads, std::vector<std::uint64_t>(bytes / 8, 1));
  std::vector<std::uint64_t> sums(threads);
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    std::vector<std::thread> pool;
    const auto start = std::chrono::steady_clock::now();
    for (int t = 0; t < threads; ++t) pool.emplace_back([&, t] { sums[t] = read_all(buffers[t], passes); });
    for (auto& thread : pool) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const double rate = 1.0 * threads * bytes * passes / seconds.count();
    if (rate > best) best = rate;
  }
  volatile std::uint64_t sink = 0;
  for (const auto sum : sums) sink = sink + sum;
  std::printf("%.2f\n", best * 1e-9);
}
