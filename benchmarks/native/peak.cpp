// Prints the giga-operations per second (a multiply-add counts two) that `threads` cores reach together out
// of registers: the ceiling that a benchmark's figure is a fraction of. Prints "absent" where the processor
// or the system lacks the instructions. Compiled by harness.py for the machine it runs on.
//   usage: peak threads fma32 | fma64 | avx512_bf16 | amx_bf16 | avx512_vnni
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "vectors.h"

namespace {

#if defined(__x86_64__)
// Leaf 7 of cpuid, and the parts of the registers' state that the system saves.
bool has(int subleaf, char word, int bit, std::uint64_t state) {
  unsigned a = 0, b = 0, c = 0, d = 0, low = 0, high = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;  // no xgetbv
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & state) != state || !__get_cpuid_count(7, static_cast<unsigned>(subleaf), &a, &b, &c, &d))
    return false;
  return (word == 'a' ? a : word == 'c' ? c : d) >> bit & 1;
}
constexpr std::uint64_t kVectors = 0xe6, kTiles = 3u << 17;

bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return has(0, 'd', 24, kTiles) && has(0, 'd', 22, kTiles) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

__attribute__((target("avx512f,avx512bf16"))) double avx512_bf16(long iterations) {
  __m512 sum[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  for (long n = 0; n < iterations; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], ones, ones);
    asm volatile("");
  }
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sink = sink + static_cast<double>(_mm512_cvtss_f32(sum[i]));
  return 2.0 * static_cast<double>(iterations) * kChains * 32;
}

__attribute__((target("avx512f,avx512vnni"))) double avx512_vnni(long iterations) {
  typedef int Sums __attribute__((vector_size(64)));  // __m512i is copied around each instruction by GCC 12
  Sums sum[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum[i] = (Sums)_mm512_set1_epi32(i);
  const __m512i ones = _mm512_set1_epi32(0x01010101);
  for (long n = 0; n < iterations; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sum[i] = (Sums)_mm512_dpbusd_epi32((__m512i)sum[i], ones, ones);
    asm volatile("");
  }
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sink = sink + sum[i][0];
  return 2.0 * static_cast<double>(iterations) * kChains * 64;
}

// Four sums from two tiles of A and two of B, as the kernels have them.
__attribute__((target("amx-tile,amx-bf16"))) double amx_bf16(long iterations) {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (long n = 0; n < iterations; ++n) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 2.0 * static_cast<double>(iterations) * 4 * 16 * 16 * 32;
}
#endif

struct Kind {
  const char* name;
  bool there;
  double (*loop)(long);
  long iterations;
};

double giga_rate(const Kind& kind, int threads) {
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    std::vector<std::thread> pool;
    std::vector<double> operations(static_cast<std::size_t>(threads));
    const auto start = std::chrono::steady_clock::now();
    for (double& count : operations) pool.emplace_back([&] { count = kind.loop(kind.iterations); });
    for (auto& thread : pool) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    double total = 0;
    for (const double count : operations) total += count;
    if (total / seconds.count() > best) best = total / seconds.count();
  }
  return best * 1e-9;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int threads = std::atoi(argv[1]);
  if (threads < 1) return 2;
  const Kind kinds[] = {
      {"fma32", true, fma<float>, 40'000'000},
      {"fma64", true, fma<double>, 40'000'000},
#if defined(__x86_64__)
      {"avx512_bf16", has(1, 'a', 5, kVectors), avx512_bf16, 40'000'000},
      {"avx512_vnni", has(0, 'c', 11, kVectors), avx512_vnni, 40'000'000},
      {"amx_bf16", may_use_tiles(), amx_bf16, 5'000'000},
#else
      {"avx512_bf16", false, nullptr, 0},      {"avx512_vnni", false, nullptr, 0},
      {"amx_bf16", false, nullptr, 0},
#endif
  };
  for (const Kind& kind : kinds) {
    if (std::strcmp(argv[2], kind.name)) continue;
    if (kind.there)
      std::printf("%.1f\n", giga_rate(kind, threads));
    else
      std::puts("absent");
    return 0;
  }
  return 2;
}
