#include "runtime/profiler.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <stdexcept>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace fusedlstm {

std::atomic<uint32_t> current_profile{0};

namespace {

constexpr int kLayers = 32;  // counted apart
constexpr size_t kIntervals = size_t{1} << 17;

using Clock = std::chrono::steady_clock;
double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

// The processor's counter of time, several times cheaper to read than a clock.
uint64_t ticks() {
#if defined(__x86_64__)
  return __rdtsc();
#elif defined(__aarch64__)
  uint64_t count;
  asm volatile("mrs %0, cntvct_el0" : "=r"(count));
  return count;
#else
  return static_cast<uint64_t>(Clock::now().time_since_epoch().count());
#endif
}

// Written by one thread, read by another that may come in between.
template <class Number>
class Sum {
 public:
  void operator+=(Number more) { value_.store(get() + more, std::memory_order_relaxed); }
  void clear() { value_.store(0, std::memory_order_relaxed); }
  Number get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<Number> value_{0};
};

struct Counter {
  Sum<uint64_t> calls, ticks;
  Sum<double> flops, bytes;
};

struct Interval {
  uint64_t begin, end;
  Phase phase;
  int8_t layer;
};

}  // namespace

struct ThreadProfile {
  std::atomic<uint32_t> profile{0};  // that the numbers belong to
  int worker = 0;
  bool in_use = true;  // by a living thread; under the registry's lock
  Scope* innermost = nullptr;
  Counter counters[kLayers + 1][kPhases];  // first those of no layer
  std::unique_ptr<Interval[]> intervals;
  std::atomic<size_t> interval_count{0};
  Sum<uint64_t> left_out;

  void clear(bool keep_intervals) {
    innermost = nullptr;
    for (auto& layer : counters)
      for (Counter& counter : layer) {
        counter.calls.clear();
        counter.ticks.clear();
        counter.flops.clear();
        counter.bytes.clear();
      }
    interval_count.store(0);
    left_out.clear();
    if (keep_intervals && !intervals)
      intervals = std::make_unique<Interval[]>(kIntervals);
    else if (!keep_intervals)
      intervals.reset();
  }
};

namespace {

struct Profiles {
  std::mutex mutex;
  std::vector<ThreadProfile*> threads;
  uint32_t last = 0;
  std::atomic<bool> intervals{false};
  ThreadProfile* starter = nullptr;
  uint64_t begin_ticks = 0;
  Clock::time_point begin;
};
// Never destroyed: workers may be in a scope while the process ends.
Profiles& profiles() {
  static Profiles* const instance = new Profiles;
  return *instance;
}

thread_local ThreadProfile* own = nullptr;
thread_local int own_worker = 0;

// Takes and gives back a thread's profile; one that is left can be taken again, but not within a profile.
struct Membership {
  ThreadProfile* taken;
  Membership() {
    Profiles& all = profiles();
    const std::lock_guard lock(all.mutex);
    for (ThreadProfile* thread : all.threads)
      if (!thread->in_use && thread->profile.load() != all.last) {
        thread->in_use = true;
        taken = thread;
        return;
      }
    all.threads.push_back(taken = new ThreadProfile);
  }
  ~Membership() {
    const std::lock_guard lock(profiles().mutex);
    taken->in_use = false;
    own = nullptr;
  }
};

// The calling thread's.
ThreadProfile* own_thread() {
  if (!own) {
    thread_local Membership membership;
    own = membership.taken;
  }
  return own;
}

// The same, ready for that profile.
ThreadProfile& own_profile(uint32_t profile) {
  own_thread();
  if (own->profile.load(std::memory_order_relaxed) != profile) {
    own->worker = own_worker;
    own->clear(profiles().intervals.load());
    own->profile.store(profile, std::memory_order_release);
  }
  return *own;
}

ThreadReport report_of(const ThreadProfile& thread, const std::string& name, uint64_t begin,
                       double seconds_per_tick) {
  ThreadReport report{name, {}, {}, thread.left_out.get()};
  for (int layer = 0; layer <= kLayers; ++layer) {
    for (size_t phase = 0; phase < kPhases; ++phase) {
      const Counter& counter = thread.counters[layer][phase];
      if (counter.calls.get() == 0) continue;
      report.counts.push_back({static_cast<Phase>(phase), layer - 1, counter.calls.get(),
                               static_cast<double>(counter.ticks.get()) * seconds_per_tick,
                               counter.flops.get(), counter.bytes.get()});
    }
  }
  const size_t count = thread.interval_count.load(std::memory_order_acquire);
  for (size_t j = 0; j < count; ++j) {
    const Interval& interval = thread.intervals[j];
    const auto since = [&](uint64_t at) { return static_cast<double>(at - begin) * seconds_per_tick; };
    report.intervals.push_back({interval.phase, interval.layer, since(interval.begin), since(interval.end)});
  }
  return report;
}

}  // namespace

void name_worker(int thread) { own_worker = thread; }

void Scope::begin(Phase phase, ptrdiff_t layer, Work work) {
  profile_ = current_profile.load(std::memory_order_acquire);
  if (profile_ == 0) return;
  thread_ = &own_profile(profile_);
  phase_ = phase;
  layer_ = static_cast<int8_t>(std::min<ptrdiff_t>(layer, kLayers - 1));
  work_ = work;
  outer_ = thread_->innermost;
  thread_->innermost = this;
  inside_ = 0;
  begin_ = ticks();
}

void Scope::end() {
  const uint64_t end = ticks(), elapsed = end - begin_;
  // Another profile may have begun since: what it has of this thread is not this scope's.
  if (thread_->profile.load(std::memory_order_relaxed) != profile_) return;
  thread_->innermost = outer_;
  if (outer_) outer_->inside_ += elapsed;
  Counter& counter = thread_->counters[layer_ + 1][static_cast<size_t>(phase_)];
  counter.calls += 1;
  counter.ticks += elapsed - inside_;
  counter.flops += work_.flops;
  counter.bytes += work_.bytes;
  if (!thread_->intervals) return;
  const size_t count = thread_->interval_count.load(std::memory_order_relaxed);
  if (count == kIntervals) {
    thread_->left_out += 1;
    return;
  }
  thread_->intervals[count] = {begin_, end, phase_, layer_};
  thread_->interval_count.store(count + 1, std::memory_order_release);
}

void start_profile(bool intervals) {
  Profiles& all = profiles();
  ThreadProfile* const caller = own_thread();
  const std::lock_guard lock(all.mutex);
  if (current_profile.load() != 0) throw std::logic_error("a profile is running already");
  all.intervals.store(intervals);
  all.starter = caller;
  all.begin = Clock::now();
  all.begin_ticks = ticks();
  if (++all.last == 0) all.last = 1;
  current_profile.store(all.last, std::memory_order_release);
}

ProfileReport stop_profile() {
  Profiles& all = profiles();
  const std::lock_guard lock(all.mutex);
  const uint32_t profile = current_profile.exchange(0);
  if (profile == 0) throw std::logic_error("no profile is running");
  ProfileReport report{seconds_between(all.begin, Clock::now()), {}};
  Clock::time_point now;
  do now = Clock::now();  // long enough to tell how long a tick is
  while (seconds_between(all.begin, now) < 1e-3);
  const double per_tick =
      seconds_between(all.begin, now) / static_cast<double>(std::max<uint64_t>(1, ticks() - all.begin_ticks));
  int others = 0;
  for (ThreadProfile* thread : all.threads) {
    if (thread->profile.load(std::memory_order_acquire) != profile) continue;
    const bool starter = thread == all.starter;
    const std::string name = starter          ? "caller"
                             : thread->worker ? "worker " + std::to_string(thread->worker)
                                              : "other caller " + std::to_string(++others);
    const auto place = starter ? report.threads.begin() : report.threads.end();
    report.threads.insert(place, report_of(*thread, name, all.begin_ticks, per_tick));
  }
  return report;
}

}  // namespace fusedlstm
