// Where the time of native calls goes: counters by thread, layer and phase, and if asked for every interval.
//
// A Scope stands in the function that does a phase's work on one thread. Off, it costs one load. On, two
// readings of the processor's counter and additions to counters that only its own thread writes. Time is
// exclusive: that of a scope inside another one, as a wait inside a product, is not counted for the outer.
//
// That is too much for a call of a few microseconds. After a short one the next calls with just as much
// work are taken to last as long; calls, FLOPs and bytes are counted for each. With intervals every call is
// timed.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/table.h"

namespace fusedlstm {

enum class Phase : uint8_t {
  kOther,              // what a native call does besides
  kPack,               // weights into the kernels' layout
  kCopy,               // rows gathered, copied, dropped out, embedded
  kInput,              // W x + b
  kRecurrent,          // R h
  kGates,              // the gates, c and h
  kGatesBackward,      // the gates' derivatives dA of a step
  kRecurrentBackward,  // dA R of a step
  kInputGradient,      // dX, also of the output layer
  kWeightGradient,     // dW, dR, db, also of the output layer
  kOutput,             // the output layer's product
  kLoss,
  kOptimiser,  // with the norm of the gradients
  kSampling,   // constraints and choice of the next token
  kAttention,  // queries, scores, contexts, and all of that backward
  kWait,       // at a barrier, or for the others to finish
  kStep,       // the interval of a StepScope
};
inline constexpr const char* kPhaseNames[] = {
    "other", "pack", "copy",   "input", "recurrent", "gates",    "gates backward", "recurrent backward",
    "dX",    "dW",   "output", "loss",  "optimiser", "sampling", "attention",      "wait",
    "step"};
constexpr size_t kPhases = sizeof kPhaseNames / sizeof *kPhaseNames;

// Additions and multiplications, and the bytes of operands and results, each counted once.
struct Work {
  double flops = 0, bytes = 0;
};
inline Work operator+(Work a, Work b) { return {a.flops + b.flops, a.bytes + b.bytes}; }
// A thread's part of C (M, N) = A (M, K) B (K, N) that `threads` make together; bytes of an element of A and
// B, and of C.
inline Work product_work(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, size_t operand, size_t result,
                         int threads = 1) {
  const double m = static_cast<double>(M), n = static_cast<double>(N), k = static_cast<double>(K);
  return {2 * m * n * k / threads,
          ((m * k + k * n) * static_cast<double>(operand) + m * n * static_cast<double>(result)) / threads};
}
// So many elements with so many operations and bytes each. exp, tanh and the like count as 20 operations.
inline Work elements_work(ptrdiff_t n, double flops, double bytes) {
  return {static_cast<double>(n) * flops, static_cast<double>(n) * bytes};
}

// Not 0 while there is a profile; a new number for each.
extern std::atomic<uint32_t> current_profile;

struct ThreadProfile;  // of one thread

class Scope {
 public:
  explicit Scope(Phase phase, ptrdiff_t layer = -1) : Scope(phase, layer, [] { return Work{}; }) {}
  // work() is called only if there is a profile.
  template <class GetWork>
  Scope(Phase phase, ptrdiff_t layer, const GetWork& work) {
    if (current_profile.load(std::memory_order_relaxed) != 0) [[unlikely]]
      begin(phase, layer, work());
  }
  ~Scope() {
    if (thread_) [[unlikely]]
      end();
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 protected:
  Scope() = default;
  // A call that is not timed is counted at once, and its thread returned.
  ThreadProfile* begin(Phase phase, ptrdiff_t layer, Work work, ptrdiff_t calls = 1);
  void end();

  ThreadProfile* thread_ = nullptr;  // null: not timed
  Scope* outer_;
  uint32_t profile_;
  Phase phase_;
  int8_t layer_;
  bool divided_;  // the kernel reads the counter too
  ptrdiff_t calls_;
  Work work_;
  uint64_t begin_, inside_;  // ticks; those of the scopes inside
};

struct StepWork {
  Work input, recurrent, gates;
};

// Steps whose products and gates are one pass. In one scope of a few the kernel reads the counter between
// them; its shares divide the time of all.
class StepScope : public Scope {
 public:
  // work() is that of all `steps`.
  template <class GetWork>
  StepScope(ptrdiff_t layer, const GetWork& work, ptrdiff_t steps = 1) {
    if (current_profile.load(std::memory_order_relaxed) != 0) [[unlikely]]
      begin_steps(layer, work(), steps);
  }
  ~StepScope() {
    if (thread_) [[unlikely]]
      end_steps();
  }
  // For the kernel; null in most scopes.
  StepTicks* ticks() { return thread_ && divided_ ? &ticks_ : nullptr; }

 private:
  void begin_steps(ptrdiff_t layer, const StepWork& work, ptrdiff_t steps);
  void end_steps();

  StepWork parts_;
  StepTicks ticks_;
};

// What one thread did.
struct PhaseCount {
  Phase phase;
  int layer;              // -1: of none; the last one stands for all deeper ones too
  uint64_t calls, timed;  // where fewer are timed than called, the seconds are those of a sample, scaled
  double seconds, flops, bytes;
};
struct PhaseInterval {
  Phase phase;
  int layer;
  double begin, end;  // seconds since the profile began, scopes inside included
};
struct ThreadReport {
  std::string name;
  std::vector<PhaseCount> counts;
  std::vector<PhaseInterval> intervals;
  uint64_t intervals_left_out;
};
struct ProfileReport {
  double seconds;
  std::vector<ThreadReport> threads;  // that of start_profile first
};

// `intervals`: keep every interval, up to some 100,000 of a thread. Throws std::logic_error if there is a
// profile already, or none to stop.
void start_profile(bool intervals);
ProfileReport stop_profile();

// The calling thread is a worker of the pool, of this number.
void name_worker(int thread);

}  // namespace fusedlstm
