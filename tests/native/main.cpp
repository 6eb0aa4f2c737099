// Checks the C++ core without Python: for cross builds under an emulator, and for ThreadSanitizer.
//
//   fusedlstm_native_tests [--level NAME|highest] [--threads N] [--hashes]
//
// Every level that the machine runs is checked against scalar code (the bfloat16 products of the others under
// an emulation of the missing instructions, where the machine has AVX-512), and the LSTM's outputs and
// gradients on a fixed problem must be the same bits on every level and any number of threads. --hashes
// prints only the hashes of those bits, one line per level and type, for comparison with another build or
// machine.
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <string_view>

#include "check.h"
#include "emulate_x86.h"
#include "runtime/cpu.h"

#if defined(FUSEDLSTM_HAS_AVX512)
namespace fusedlstm {
extern const Level level_avx512;
}
#endif

namespace {

// The bfloat16 products of every level, also of those that the machine runs only with help.
void test_all_bf16(const std::string& only, int max_threads) {
  using namespace fusedlstm_tests;
  const std::vector<const fusedlstm::Level*> runnable = fusedlstm::runnable_levels();
  for (const fusedlstm::Level* level : fusedlstm::compiled_levels()) {
    if (!only.empty() && only != level->name && !(only == "highest" && level == runnable.back())) continue;
    const bool hardware = std::find(runnable.begin(), runnable.end(), level) != runnable.end();
    const std::string name = level->name;
    if (!hardware && !((name == "avx512_bf16" || name == "amx") && can_emulate())) continue;
    if (!hardware) emulate_missing_instructions();
    const long before = emulated_instructions();
    test_bf16(*level);
    if (name == "avx512" || name == "avx512_bf16" || name == "amx") {
      fusedlstm::set_level("avx512");
      test_lstm_bf16(*level, fusedlstm::current_level(), max_threads);
    }
    const long emulated = emulated_instructions() - before;
    if (hardware)
      std::printf("bf16 %s: on the hardware\n", level->name);
    else
      std::printf("bf16 %s: emulated, %ld instructions\n", level->name, emulated);
    expect(hardware == (emulated == 0), name + ": its bfloat16 instructions were reached");
  }
}

int run(const std::string& only, int max_threads, bool hashes_only) {
  using namespace fusedlstm_tests;
  std::vector<std::string> first;  // hashes of the first level
  bool found = false;
  const std::vector<const fusedlstm::Level*> levels = fusedlstm::runnable_levels();
  for (const fusedlstm::Level* level : levels) {
    if (!only.empty() && only != level->name && !(only == "highest" && level == levels.back())) continue;
    found = true;
    if (!hashes_only) {
      test_kernels(*level);
      test_int8(level->name, level->int8);
    }
    fusedlstm::set_level(level->name);
    if (!hashes_only) {
      test_beam_search(max_threads);
      test_one_to_many(max_threads);
    }
    std::vector<std::string> hashes;
    test_lstm(*level, max_threads, &hashes);
    test_attention(*level, max_threads, &hashes);
    for (const std::string& hash : hashes) std::printf("%s %s\n", level->name, hash.c_str());
    if (first.empty()) first = hashes;
    expect(hashes == first, std::string(level->name) + " computes other bits than the first level");
  }
  test_profiler(max_threads);
  test_callers(max_threads);
  if (!hashes_only) {
    test_all_bf16(only, max_threads);
#if defined(FUSEDLSTM_HAS_AVX512)
    // On a machine with VNNI the level's own products are not those in its table.
    if (fusedlstm_tests::can_emulate()) test_int8("avx512 without VNNI", fusedlstm::level_avx512.int8);
#endif
  }
  if (!found) {
    std::fprintf(stderr, "level '%s' does not exist or cannot run here\n", only.c_str());
    return 2;
  }
  if (!hashes_only || failures) std::printf(failures ? "%d failures\n" : "native tests passed\n", failures);
  return failures ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::string level;
  int threads = 3;
  bool hashes_only = false;
  for (int k = 1; k < argc; ++k) {
    const std::string_view option = argv[k];
    if (option == "--hashes") {
      hashes_only = true;
    } else if (option == "--level" && k + 1 < argc) {
      level = argv[++k];
    } else if (option == "--threads" && k + 1 < argc) {
      threads = std::max(1, std::atoi(argv[++k]));
    } else {
      std::fprintf(stderr, "usage: %s [--level NAME|highest] [--threads N] [--hashes]\n", argv[0]);
      return 2;
    }
  }
  try {
    return run(level, threads, hashes_only);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
