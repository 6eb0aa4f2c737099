#include "runtime/cpu.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#endif

namespace fusedlstm {

extern const Level level_generic;
#if defined(FUSEDLSTM_HAS_AVX2)
extern const Level level_avx2;
#endif
#if defined(FUSEDLSTM_HAS_AVX512)
extern const Level level_avx512;
#endif
#if defined(FUSEDLSTM_HAS_AVX512_BF16)
extern const Bf16Kernels bf16_avx512_bf16;
#endif
#if defined(FUSEDLSTM_HAS_AMX)
extern const Bf16Kernels bf16_amx;
#endif
#if defined(FUSEDLSTM_HAS_AVX512_VNNI)
extern const Int8Kernels int8_vnni;
#endif
#if defined(FUSEDLSTM_HAS_NEON)
extern const Level level_neon;
#endif

namespace {

#if defined(__x86_64__)
// AMX's registers must be asked for, once for all threads of the process. Asking again is cheap.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned int a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned int kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  __get_cpuid(1, &a, &b, &c, &d);
  if ((c & (1u << 27)) == 0) return false;  // no xgetbv
  unsigned int low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned int kTileState = 3u << 17;  // the system saves both parts of it
  return (low & kTileState) == kTileState && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// __builtin_cpu_supports reads cpuid and, through xgetbv, whether the operating system saves the registers.
bool can_run(const std::string& name) {
  __builtin_cpu_init();
  if (name == "avx2") {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2");
  }
  if (name == "avx512") {
    return can_run("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  }
  if (name == "avx512_bf16") return can_run("avx512") && __builtin_cpu_supports("avx512bf16");
  if (name == "amx") return can_run("avx512") && may_use_tiles();
  return true;
}
#else
bool can_run(const std::string&) { return true; }
#endif

#if defined(FUSEDLSTM_HAS_AVX512)
// avx512 with the products that this machine has better instructions for.
Level avx512_with(const char* name, const Bf16Kernels& bf16) {
  Level level = level_avx512;
  level.name = name;
  level.bf16 = bf16;
#if defined(FUSEDLSTM_HAS_AVX512_VNNI)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vnni")) level.int8 = int8_vnni;
#endif
  return level;
}
#endif

std::string names(const std::vector<const Level*>& levels) {
  std::string text;
  for (const Level* level : levels) text += (text.empty() ? "" : ", ") + std::string(level->name);
  return text;
}

const Level& find_level(const std::string& name, const char* who) {
  for (const Level* level : runnable_levels())
    if (name == level->name) return *level;
  for (const Level* level : compiled_levels())
    if (name == level->name)
      throw std::invalid_argument(std::string(who) + ": this machine cannot run '" + name +
                                  "'; available: " + names(runnable_levels()));
  throw std::invalid_argument(std::string(who) + ": unknown instruction set '" + name +
                              "'; available: " + names(runnable_levels()));
}

std::atomic<const Level*> current{nullptr};

}  // namespace

std::vector<const Level*> compiled_levels() {
#if defined(FUSEDLSTM_HAS_AVX512)
  static const Level avx512 = avx512_with("avx512", level_avx512.bf16);
#endif
#if defined(FUSEDLSTM_HAS_AVX512_BF16)
  static const Level level_avx512_bf16 = avx512_with("avx512_bf16", bf16_avx512_bf16);
#endif
#if defined(FUSEDLSTM_HAS_AMX)
  static const Level level_amx = avx512_with("amx", bf16_amx);
#endif
  return {
      &level_generic,
#if defined(FUSEDLSTM_HAS_AVX2)
      &level_avx2,
#endif
#if defined(FUSEDLSTM_HAS_AVX512)
      &avx512,
#endif
#if defined(FUSEDLSTM_HAS_AVX512_BF16)
      &level_avx512_bf16,
#endif
#if defined(FUSEDLSTM_HAS_AMX)
      &level_amx,
#endif
#if defined(FUSEDLSTM_HAS_NEON)
      &level_neon,
#endif
  };
}

std::vector<const Level*> runnable_levels() {
  std::vector<const Level*> levels;
  for (const Level* level : compiled_levels())
    if (can_run(level->name)) levels.push_back(level);
  return levels;
}

const Level& current_level() {
  const Level* level = current.load();
  if (level) return *level;
  const char* wanted = std::getenv("FUSEDLSTM_ISA");
  level = wanted && *wanted ? &find_level(wanted, "FUSEDLSTM_ISA") : runnable_levels().back();
  current.store(level);
  return *level;
}

void set_level(const std::string& name) { current.store(&find_level(name, "set_isa")); }

std::string cpu_brand() {
#if defined(__x86_64__)
  unsigned int words[12];
  for (unsigned int i = 0; i < 3; ++i)
    if (!__get_cpuid(0x80000002 + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]))
      return "";
  char text[sizeof words + 1] = {};
  std::memcpy(text, words, sizeof words);
  const std::string brand(text);
  const size_t first = brand.find_first_not_of(' ');
  return first == std::string::npos ? "" : brand.substr(first);
#else
  return "";
#endif
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
#define FUSEDLSTM_FEATURE(name) \
  if (__builtin_cpu_supports(name)) found.push_back(name)
  FUSEDLSTM_FEATURE("sse4.2");
  FUSEDLSTM_FEATURE("avx");
  FUSEDLSTM_FEATURE("avx2");
  FUSEDLSTM_FEATURE("fma");
  FUSEDLSTM_FEATURE("avx512f");
  FUSEDLSTM_FEATURE("avx512bw");
  FUSEDLSTM_FEATURE("avx512dq");
  FUSEDLSTM_FEATURE("avx512vl");
  FUSEDLSTM_FEATURE("avx512vnni");
  FUSEDLSTM_FEATURE("avx512bf16");
#undef FUSEDLSTM_FEATURE
  if (may_use_tiles()) found.push_back("amx-bf16");
#elif defined(__aarch64__)
  found.push_back("neon");
#endif
  return found;
}

std::vector<long> cache_sizes() {
  std::vector<long> bytes;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  for (const int name : {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE}) {
    const long size = sysconf(name);
    bytes.push_back(size > 0 ? size : 0);
  }
#endif
  return bytes;
}

}  // namespace fusedlstm
