// The processor's counter of time, and how a step that is made in one pass tells how long its parts take.
#pragma once

#include "kernels/table.h"

namespace fusedlstm {
namespace {

// Several times cheaper to read than a clock. Other processors than these have no parts of steps.
inline __attribute__((always_inline)) uint64_t read_ticks() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t count;
  asm volatile("mrs %0, cntvct_el0" : "=r"(count));
  return count;
#else
  return 0;
#endif
}

// Each part's time is what passed since the part before it. The counter does not wait for what runs out of
// order: all readings come as much too early, their differences are right.
class PartTimer {
 public:
  inline __attribute__((always_inline)) explicit PartTimer(StepTicks* ticks) : ticks_(ticks) {
    if (ticks_) [[unlikely]]
      last_ = read_ticks();
  }
  inline __attribute__((always_inline)) void end(uint64_t StepTicks::* part) {
    if (ticks_) [[unlikely]] {
      const uint64_t now = read_ticks();
      ticks_->*part += now - last_;
      last_ = now;
    }
  }

 private:
  StepTicks* ticks_;
  uint64_t last_ = 0;
};

}  // namespace
}  // namespace fusedlstm
