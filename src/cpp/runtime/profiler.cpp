#include "runtime/profiler.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "kernels/ticks.h"

namespace fusedlstm {

std::atomic<uint32_t> current_profile{0};

namespace {

constexpr int kLayers = 32;  // counted apart
constexpr size_t kIntervals = size_t{1} << 17;
constexpr std::chrono::microseconds kShort{4};  // to time a shorter call takes more than 1 % of it
constexpr uint32_t kRepeats = 30;               // calls after a short one that may count as it did
constexpr uint32_t kDivided = 8;                // of so many timed scopes of steps one is divided into parts

using Clock = std::chrono::steady_clock;
double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

uint64_t ticks() {
#if defined(__x86_64__) || defined(__aarch64__)
  return read_ticks();
#else
  return static_cast<uint64_t>(Clock::now().time_since_epoch().count());
#endif
}

uint64_t ticks_of_short_call() {
  static const uint64_t found = [] {
    const Clock::time_point begin = Clock::now();
    const uint64_t first = ticks();
    while (Clock::now() - begin < 25 * kShort) {
    }
    return (ticks() - first) / 25;
  }();
  return found;
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
  Sum<uint64_t> calls, timed, ticks;
  Sum<double> flops, bytes;

  void add(uint64_t more_calls, uint64_t more_timed, uint64_t more_ticks, const Work& work) {
    calls += more_calls;
    timed += more_timed;
    ticks += more_ticks;
    flops += work.flops;
    bytes += work.bytes;
  }
  void clear() {
    calls.clear();
    timed.clear();
    ticks.clear();
    flops.clear();
    bytes.clear();
  }
};

// The last short call, and how many calls like it may count as it did. Of its own thread only.
struct LastCall {
  uint32_t repeats = 0, timed = 0;  // scopes timed so far
  uint64_t ticks = 0;
  Work work;
};

// The ticks are those of divided scopes.
struct StepCounter {
  Counter input, recurrent, gates;

  void add(uint64_t calls, uint64_t timed, const StepTicks& ticks, const StepWork& work) {
    if (work.input.flops > 0) input.add(calls, timed, ticks.input, work.input);
    recurrent.add(calls, timed, ticks.recurrent, work.recurrent);
    gates.add(calls, timed, ticks.gates, work.gates);
  }
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
  LastCall last[kLayers + 1][kPhases];
  StepCounter steps[kLayers + 1];
  std::unique_ptr<Interval[]> intervals;
  std::atomic<size_t> interval_count{0};
  Sum<uint64_t> left_out;

  void clear(bool keep_intervals) {
    innermost = nullptr;
    for (auto& layer : counters)
      for (Counter& counter : layer) counter.clear();
    for (auto& layer : last)
      for (LastCall& call : layer) call = {};
    for (StepCounter& step : steps)
      for (Counter* part : {&step.input, &step.recurrent, &step.gates}) part->clear();
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
  std::atomic<uint64_t> short_call{0};
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

// Of one layer, with its part of the time of steps: what the kernel found in the divided ones.
PhaseCount count_of(const ThreadProfile& thread, int layer, Phase phase, double seconds_per_tick) {
  const auto& counters = thread.counters[layer];
  const auto time = [&](const Counter& counter) {
    return static_cast<double>(counter.ticks.get()) * seconds_per_tick;
  };
  const auto count = [&](const Counter& counter, double seconds) {
    return PhaseCount{phase,   layer - 1,           counter.calls.get(), counter.timed.get(),
                      seconds, counter.flops.get(), counter.bytes.get()};
  };
  const Counter& whole = counters[static_cast<size_t>(phase)];
  PhaseCount sum = count(whole, time(whole));
  const StepCounter& step = thread.steps[layer];
  const Counter* const part = phase == Phase::kInput       ? &step.input
                              : phase == Phase::kRecurrent ? &step.recurrent
                              : phase == Phase::kGates     ? &step.gates
                                                           : nullptr;
  if (!part) return sum;
  const double divided = time(step.input) + time(step.recurrent) + time(step.gates),
               share = divided > 0 ? time(*part) / divided : (phase == Phase::kRecurrent ? 1.0 : 0.0);
  const PhaseCount more = count(*part, share * time(counters[static_cast<size_t>(Phase::kStep)]));
  sum.calls += more.calls;
  sum.timed += more.timed;
  sum.seconds += more.seconds;
  sum.flops += more.flops;
  sum.bytes += more.bytes;
  return sum;
}

ThreadReport report_of(const ThreadProfile& thread, const std::string& name, uint64_t begin,
                       double seconds_per_tick) {
  ThreadReport report{name, {}, {}, thread.left_out.get()};
  for (int layer = 0; layer <= kLayers; ++layer) {
    for (size_t phase = 0; phase < static_cast<size_t>(Phase::kStep); ++phase) {
      const PhaseCount count = count_of(thread, layer, static_cast<Phase>(phase), seconds_per_tick);
      if (count.calls > 0) report.counts.push_back(count);
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

ThreadProfile* Scope::begin(Phase phase, ptrdiff_t layer, Work work, ptrdiff_t calls) {
  profile_ = current_profile.load(std::memory_order_acquire);
  if (profile_ == 0) return nullptr;
  ThreadProfile& thread = own_profile(profile_);
  phase_ = phase;
  layer_ = static_cast<int8_t>(std::min<ptrdiff_t>(layer, kLayers - 1));
  LastCall& last = thread.last[layer_ + 1][static_cast<size_t>(phase)];
  if (last.repeats > 0 && work.flops == last.work.flops && work.bytes == last.work.bytes) {
    --last.repeats;
    thread.counters[layer_ + 1][static_cast<size_t>(phase)].add(static_cast<uint64_t>(calls), 0, last.ticks,
                                                                work);
    if (thread.innermost) thread.innermost->inside_ += last.ticks;
    return &thread;
  }
  thread_ = &thread;
  calls_ = calls;
  work_ = work;
  divided_ = phase == Phase::kStep && last.timed++ % kDivided == 0;
  outer_ = thread_->innermost;
  thread_->innermost = this;
  inside_ = 0;
  begin_ = ticks();
  return nullptr;
}

void Scope::end() {
  const uint64_t end = ticks(), elapsed = end - begin_, own_ticks = elapsed - std::min(elapsed, inside_);
  // Another profile may have begun since: what it has of this thread is not this scope's.
  if (thread_->profile.load(std::memory_order_relaxed) != profile_) return;
  thread_->innermost = outer_;
  if (outer_) outer_->inside_ += elapsed;
  const uint64_t calls = static_cast<uint64_t>(calls_);
  thread_->counters[layer_ + 1][static_cast<size_t>(phase_)].add(calls, calls, own_ticks, work_);
  if (!thread_->intervals) {
    // Equal work tells equal calls, so there must be some; a divided one took longer than the others do.
    const bool is_short = own_ticks < profiles().short_call.load(std::memory_order_relaxed);
    LastCall& last = thread_->last[layer_ + 1][static_cast<size_t>(phase_)];
    if (is_short && work_.bytes > 0 && !divided_) {
      last.repeats = kRepeats;
      last.ticks = own_ticks;
      last.work = work_;
    }
    return;
  }
  const size_t count = thread_->interval_count.load(std::memory_order_relaxed);
  if (count == kIntervals) {
    thread_->left_out += 1;
    return;
  }
  thread_->intervals[count] = {begin_, end, phase_, layer_};
  thread_->interval_count.store(count + 1, std::memory_order_release);
}

void StepScope::begin_steps(ptrdiff_t layer, const StepWork& work, ptrdiff_t steps) {
  ticks_ = {};
  parts_ = work;
  if (ThreadProfile* const repeated =
          begin(Phase::kStep, layer, work.input + work.recurrent + work.gates, steps))
    repeated->steps[layer_ + 1].add(static_cast<uint64_t>(steps), 0, ticks_, work);
}

void StepScope::end_steps() {
  ThreadProfile* const thread = thread_;
  end();
  thread_ = nullptr;
  if (thread->profile.load(std::memory_order_relaxed) != profile_) return;
  const uint64_t steps = static_cast<uint64_t>(calls_);
  thread->steps[layer_ + 1].add(steps, divided_ ? steps : 0, ticks_, parts_);
}

void start_profile(bool intervals) {
  Profiles& all = profiles();
  ThreadProfile* const caller = own_thread();
  const uint64_t short_call = ticks_of_short_call();
  const std::lock_guard lock(all.mutex);
  if (current_profile.load() != 0) throw std::logic_error("a profile is running already");
  all.intervals.store(intervals);
  all.short_call.store(short_call);
  all.starter = caller;
  if (++all.last == 0) all.last = 1;
  own_profile(all.last);  // cleared before the time begins
  all.begin = Clock::now();
  all.begin_ticks = ticks();
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
