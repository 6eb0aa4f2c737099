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
constexpr std::chrono::microseconds kShort{20};  // to time a shorter call takes more than 1 % of it
constexpr uint64_t kRepeats = 100;               // calls after a short one that may count as it did
constexpr uint32_t kDivided = 8;                 // of so many timed scopes of steps one is divided into parts

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

struct Moment {
  Clock::time_point time;
  uint64_t ticks;
};
// Both clocks at once: of some tries the one in between which the least time passed.
Moment now() {
  Moment best{};
  Clock::duration least = Clock::duration::max();
  for (int attempt = 0; attempt < 5; ++attempt) {
    const Moment moment{Clock::now(), ticks()};
    const Clock::duration passed = Clock::now() - moment.time;
    if (passed < least) least = passed, best = moment;
  }
  return best;
}

uint64_t ticks_of_short_call() {
  static const uint64_t found = [] {
    const Clock::time_point begin = Clock::now();
    const uint64_t first = ticks();
    while (Clock::now() - begin < 10 * kShort) {
    }
    return (ticks() - first) / 10;
  }();
  return found;
}

// Written by one thread, read by another that may come in between.
template <class Number>
class Sum {
 public:
  void operator+=(Number more) { value_.store(get() + more, std::memory_order_relaxed); }
  void operator=(Number value) { value_.store(value, std::memory_order_relaxed); }
  Number get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<Number> value_{0};
};

struct Count {
  uint64_t calls = 0, timed = 0, ticks = 0;
  Work work;
};
Count operator+(const Count& a, const Count& b) {
  return {a.calls + b.calls, a.timed + b.timed, a.ticks + b.ticks, a.work + b.work};
}

struct Counter {
  Sum<uint64_t> calls, timed, ticks;
  Sum<double> flops, bytes;

  Count get() const { return {calls.get(), timed.get(), ticks.get(), {flops.get(), bytes.get()}}; }
  void operator=(const Count& count) {
    calls = count.calls;
    timed = count.timed;
    ticks = count.ticks;
    flops = count.work.flops;
    bytes = count.work.bytes;
  }
  void operator+=(const Count& more) { *this = get() + more; }
};

// Calls of one phase and layer. After a short one the next count as it did: all that is written for one of
// them is their number, all that is read lies in one cache line. A small step needs the cache for itself.
struct alignas(64) Calls {
  Sum<uint64_t> repeated;  // since the short call
  Counter short_call;
  uint64_t most_repeated = 0;
  uint32_t timed = 0;  // scopes
  Counter short_parts[3];
  Counter sum, parts[3];        // those of a step have the ticks of divided ones
  Sum<uint64_t> settled_ticks;  // of the sum, those that were not timed

  Count total() const { return sum.get() + repetitions(short_call); }
  Count part(int which) const { return parts[which].get() + repetitions(short_parts[which]); }
  uint64_t ticks_not_timed() const { return settled_ticks.get() + repetitions(short_call).ticks; }
  // What was repeated, into the sums.
  void settle() {
    if (repeated.get() == 0) return;
    settled_ticks = ticks_not_timed();
    sum = total();
    for (int which = 0; which < 3; ++which) parts[which] = part(which);
    repeated = 0;
  }
  void clear() {
    for (Counter* counter : {&sum, &short_call}) *counter = Count{};
    for (int which = 0; which < 3; ++which) parts[which] = Count{}, short_parts[which] = Count{};
    repeated = 0;
    settled_ticks = 0;
    most_repeated = timed = 0;
  }

 private:
  Count repetitions(const Counter& of) const {
    const uint64_t n = repeated.get();
    const Count count = of.get();
    const double times = static_cast<double>(n);
    return {n * count.calls, 0, n * count.ticks, {times * count.work.flops, times * count.work.bytes}};
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
  Sum<uint64_t> excess;  // ticks that calls which were not timed had beyond those of the scopes around them
  Calls calls[kLayers + 1][kPhases];  // first those of no layer
  std::unique_ptr<Interval[]> intervals;
  std::atomic<size_t> interval_count{0};
  Sum<uint64_t> left_out;

  void clear(bool keep_intervals) {
    innermost = nullptr;
    for (auto& layer : calls)
      for (Calls& of_phase : layer) of_phase.clear();
    interval_count.store(0);
    left_out = 0;
    excess = 0;
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
  Moment begin;
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

// The same, made ready for that profile.
[[gnu::noinline]] ThreadProfile& new_profile(uint32_t profile) {
  ThreadProfile* const thread = own_thread();
  thread->worker = own_worker;
  thread->clear(profiles().intervals.load());
  thread->profile.store(profile, std::memory_order_release);
  return *thread;
}

// Ready for that profile. A thread-local variable takes as long to find as all the rest: once.
inline ThreadProfile& own_profile(uint32_t profile) {
  ThreadProfile* const thread = own;
  if (thread && thread->profile.load(std::memory_order_relaxed) == profile) [[likely]]
    return *thread;
  return new_profile(profile);
}

// Calls that were not timed may have been shorter than the timed one before them: what they are to be
// multiplied by, so that no thread has more time than passed.
double scale_of_not_timed(const ThreadProfile& thread) {
  uint64_t not_timed = 0;
  for (const auto& layer : thread.calls)
    for (const Calls& of_phase : layer) not_timed += of_phase.ticks_not_timed();
  const uint64_t excess = std::min(thread.excess.get(), not_timed);
  return not_timed == 0 ? 1 : static_cast<double>(not_timed - excess) / static_cast<double>(not_timed);
}

// With its part of the time of the layer's steps: what the kernel found in the divided ones.
PhaseCount count_of(const ThreadProfile& thread, int layer, Phase phase, double seconds_per_tick,
                    double scale) {
  const auto seconds = [&](const Calls& of) {
    const double not_timed = static_cast<double>(of.ticks_not_timed());
    return (static_cast<double>(of.total().ticks) - (1 - scale) * not_timed) * seconds_per_tick;
  };
  const auto& calls = thread.calls[layer];
  const Count own_calls = calls[static_cast<size_t>(phase)].total();
  PhaseCount count{phase,
                   layer - 1,
                   own_calls.calls,
                   own_calls.timed,
                   seconds(calls[static_cast<size_t>(phase)]),
                   own_calls.work.flops,
                   own_calls.work.bytes};
  const int part = static_cast<int>(phase) - static_cast<int>(Phase::kInput);
  if (part < 0 || part > 2) return count;
  const Calls& steps = calls[static_cast<size_t>(Phase::kStep)];
  const Count of_steps = steps.part(part);
  const double divided = static_cast<double>(steps.part(0).ticks + steps.part(1).ticks + steps.part(2).ticks);
  double share = phase == Phase::kRecurrent ? 1 : 0;  // where no counter can be read
  if (divided > 0) share = static_cast<double>(of_steps.ticks) / divided;
  count.calls += of_steps.calls;
  count.timed += of_steps.timed;
  count.seconds += share * seconds(steps);
  count.flops += of_steps.work.flops;
  count.bytes += of_steps.work.bytes;
  return count;
}

ThreadReport report_of(const ThreadProfile& thread, const std::string& name, uint64_t begin,
                       double seconds_per_tick) {
  ThreadReport report{name, {}, {}, thread.left_out.get()};
  const double scale = scale_of_not_timed(thread);
  for (int layer = 0; layer <= kLayers; ++layer) {
    for (size_t phase = 0; phase < static_cast<size_t>(Phase::kStep); ++phase) {
      const PhaseCount count = count_of(thread, layer, static_cast<Phase>(phase), seconds_per_tick, scale);
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
  Calls& all = thread.calls[layer_ + 1][static_cast<size_t>(phase)];
  if (all.repeated.get() < all.most_repeated && work.flops == all.short_call.flops.get() &&
      work.bytes == all.short_call.bytes.get()) {
    all.repeated += 1;
    if (thread.innermost) thread.innermost->inside_ += all.short_call.ticks.get();
    return &thread;
  }
  thread_ = &thread;
  calls_ = calls;
  work_ = work;
  // Among short calls every other timed one, which are few.
  divided_ = phase == Phase::kStep && all.timed++ % (all.most_repeated > 0 ? 2 : kDivided) == 0;
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
  if (inside_ > elapsed) thread_->excess += inside_ - elapsed;
  const uint64_t calls = static_cast<uint64_t>(calls_);
  Calls& all = thread_->calls[layer_ + 1][static_cast<size_t>(phase_)];
  const Count count{calls, calls, own_ticks, work_};
  all.sum += count;
  if (!thread_->intervals) {
    // Equal work tells equal calls, so there must be some; a divided one took longer than the others do.
    if (work_.bytes > 0 && !divided_ && own_ticks < profiles().short_call.load(std::memory_order_relaxed)) {
      all.settle();
      all.short_call = count;
      all.most_repeated = kRepeats;
    }
    return;
  }
  const size_t count_of_intervals = thread_->interval_count.load(std::memory_order_relaxed);
  if (count_of_intervals == kIntervals) {
    thread_->left_out += 1;
    return;
  }
  thread_->intervals[count_of_intervals] = {begin_, end, phase_, layer_};
  thread_->interval_count.store(count_of_intervals + 1, std::memory_order_release);
}

void StepScope::begin_steps(ptrdiff_t layer, const StepWork& work, ptrdiff_t steps) {
  if (begin(Phase::kStep, layer,
            {work.input.flops + work.recurrent.flops + work.gates.flops,
             work.input.bytes + work.recurrent.bytes + work.gates.bytes},
            steps))
    return;
  ticks_ = {};
  parts_ = work;
}

void StepScope::end_steps() {
  ThreadProfile* const thread = thread_;
  end();
  thread_ = nullptr;
  if (thread->profile.load(std::memory_order_relaxed) != profile_) return;
  Calls& all = thread->calls[layer_ + 1][static_cast<size_t>(Phase::kStep)];
  const uint64_t steps = static_cast<uint64_t>(calls_), divided = divided_ ? steps : 0;
  const bool is_last = all.short_call.flops.get() == work_.flops && all.short_call.bytes.get() == work_.bytes;
  const auto add = [&](int part, const Work& work, uint64_t ticks_of_part) {
    const bool is_there = work.bytes > 0;
    if (is_there) all.parts[part] += {steps, divided, ticks_of_part, work};
    if (is_last) all.short_parts[part] = Count{is_there ? steps : 0, 0, 0, work};
  };
  add(0, parts_.input, ticks_.input);
  add(1, parts_.recurrent, ticks_.recurrent);
  add(2, parts_.gates, ticks_.gates);
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
  all.begin = now();
  current_profile.store(all.last, std::memory_order_release);
}

ProfileReport stop_profile() {
  Profiles& all = profiles();
  const std::lock_guard lock(all.mutex);
  const uint32_t profile = current_profile.exchange(0);
  if (profile == 0) throw std::logic_error("no profile is running");
  ProfileReport report{seconds_between(all.begin.time, Clock::now()), {}};
  Moment later;
  do later = now();  // long enough to tell how long a tick is
  while (seconds_between(all.begin.time, later.time) < 1e-3);
  const double per_tick = seconds_between(all.begin.time, later.time) /
                          static_cast<double>(std::max<uint64_t>(1, later.ticks - all.begin.ticks));
  int others = 0;
  for (ThreadProfile* thread : all.threads) {
    if (thread->profile.load(std::memory_order_acquire) != profile) continue;
    const bool starter = thread == all.starter;
    const std::string name = starter          ? "caller"
                             : thread->worker ? "worker " + std::to_string(thread->worker)
                                              : "other caller " + std::to_string(++others);
    const auto place = starter ? report.threads.begin() : report.threads.end();
    report.threads.insert(place, report_of(*thread, name, all.begin.ticks, per_tick));
  }
  return report;
}

}  // namespace fusedlstm
