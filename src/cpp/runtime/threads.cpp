#include "runtime/threads.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "runtime/flush_to_zero.h"
#include "runtime/profiler.h"

namespace fusedlstm {

struct JobState {
  explicit JobState(int threads_in, const Poll& poll_in) : threads(threads_in), poll(poll_in) {}
  const int threads;
  const Poll& poll;
  std::atomic<bool> stop{false};
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<unsigned> phase{0};
  std::chrono::steady_clock::time_point last_poll = std::chrono::steady_clock::now();
  std::mutex error_mutex;
  std::exception_ptr error;
};

namespace {

// A waiting thread pauses, 5 to 20 microseconds, then yields to others, among them perhaps the thread that it
// waits for, then sleeps. To wake it takes longer, so inside a job it waits some milliseconds before.
constexpr int kSpins = 300, kYields = 500, kYieldsInJob = 10000;
constexpr auto kPollEvery = std::chrono::milliseconds(30);

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`; awake for some time, then asleep until it is notified.
template <class Value>
void wait_while(const std::atomic<Value>& value, Value old, int yields) {
  for (int times = 0; times < kSpins + yields; ++times) {
    if (value.load(std::memory_order_acquire) != old) return;
    if (times < kSpins)
      pause();
    else
      std::this_thread::yield();
  }
  value.wait(old, std::memory_order_acquire);
}

void run_share(JobState& state, int thread, const std::function<void(Team&)>& job) {
  const FlushToZero flush;
  const Scope scope(Phase::kOther);
  Team team(thread, state.threads, state);
  try {
    job(team);
  } catch (...) {
    const std::lock_guard lock(state.error_mutex);
    // Whoever was first says why; the others only left because of it.
    if (!state.stop.exchange(true) || !state.error) state.error = std::current_exception();
    state.phase.fetch_add(1, std::memory_order_acq_rel);  // those at a barrier find out
    state.phase.notify_all();
  }
}

class Pool {
 public:
  // False when another call has the pool.
  bool try_run(int threads, const Poll& poll, const std::function<void(Team&)>& job) {
    if (busy_.test_and_set(std::memory_order_acquire)) return false;
    const std::unique_ptr<std::atomic_flag, Release> release(&busy_);
    grow(threads - 1);
    keep_off_this_cpu(threads);
    JobState state(threads, poll);
    {
      const std::lock_guard lock(mutex_);
      job_ = &job;
      state_ = &state;
      threads_ = threads;
      pending_.store(threads - 1);
      generation_.fetch_add(1);
    }
    generation_.notify_all();
    run_share(state, 0, job);
    const Scope scope(Phase::kWait);
    for (int left; (left = pending_.load(std::memory_order_acquire)) != 0;)
      wait_while(pending_, left, kYieldsInJob);
    if (state.error) std::rethrow_exception(state.error);
    return true;
  }

 private:
  void grow(int workers) {
    workers_.reserve(static_cast<size_t>(workers));  // a thread that runs could not be kept otherwise
    while (static_cast<int>(workers_.size()) < workers) {
      const int thread = static_cast<int>(workers_.size()) + 1;
      std::thread worker([this, thread, seen = generation_.load()] { work(thread, seen); });
      workers_.push_back({worker.native_handle()});
      worker.detach();
    }
  }

  // Linux may wake a worker on the CPU of the thread that wakes it, and leave both there for tens of
  // milliseconds with another CPU idle (a virtual one that has halted counts as taken). So workers may use
  // the CPUs that the caller may use, but for the one that it is on, where there are enough.
  void keep_off_this_cpu(int threads) {
#if defined(__linux__)
    cpu_set_t cpus;
    const int here = sched_getcpu();
    if (here < 0 || sched_getaffinity(0, sizeof cpus, &cpus) != 0) return;
    if (CPU_COUNT(&cpus) >= threads) CPU_CLR(static_cast<size_t>(here), &cpus);
    for (int worker = 0; worker < threads - 1; ++worker) {
      Worker& one = workers_[static_cast<size_t>(worker)];
      if (CPU_EQUAL(&one.cpus, &cpus)) continue;
      pthread_setaffinity_np(one.handle, sizeof cpus, &cpus);
      one.cpus = cpus;
    }
#else
    static_cast<void>(threads);
#endif
  }

  [[noreturn]] void work(int thread, unsigned seen) {
    name_worker(thread);
    for (;;) {
      wait_while(generation_, seen, kYields);
      const std::function<void(Team&)>* job;
      JobState* state;
      {
        const std::lock_guard lock(mutex_);
        seen = generation_.load();
        if (thread >= threads_) continue;  // not of this job, whose state may be gone already
        job = job_;
        state = state_;
      }
      run_share(*state, thread, *job);
      pending_.fetch_sub(1, std::memory_order_release);
      pending_.notify_one();
    }
  }

  struct Release {
    void operator()(std::atomic_flag* busy) const { busy->clear(std::memory_order_release); }
  };
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  std::atomic<unsigned> generation_{0};  // of jobs
  std::atomic<int> pending_{0};
  std::mutex mutex_;  // guards the three below
  const std::function<void(Team&)>* job_ = nullptr;
  JobState* state_ = nullptr;
  int threads_ = 0;
  struct Worker {
    pthread_t handle;
#if defined(__linux__)
    cpu_set_t cpus{};  // that it was given; none: those of the thread that made it
#endif
  };
  std::vector<Worker> workers_;
};

// Never destroyed: its threads are detached and may sleep on it while the process ends. A forked child has
// none of the threads and perhaps locked mutexes, so it leaves the old pool alone and makes a new one.
std::atomic<Pool*> the_pool{nullptr};
std::mutex pool_mutex;

Pool& pool() {
  Pool* p = the_pool.load();
  if (p) return *p;
  const std::lock_guard lock(pool_mutex);
  if (!the_pool.load()) {
    static const int registered = pthread_atfork([] { pool_mutex.lock(); }, [] { pool_mutex.unlock(); },
                                                 [] {
                                                   the_pool.store(nullptr);
                                                   pool_mutex.unlock();
                                                 });
    static_cast<void>(registered);
    the_pool.store(new Pool);
  }
  return *the_pool.load();
}

int usable_cpus() {
  int cpus = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = CPU_COUNT(&set);
  std::ifstream limit("/sys/fs/cgroup/cpu.max");  // "<quota or max> <period>"
  std::string quota;
  double period = 0;
  if (limit >> quota >> period && quota != "max" && period > 0)
    cpus = std::min(cpus, static_cast<int>(std::ceil(std::stod(quota) / period)));
#endif
  return cpus > 0 ? cpus : 1;
}

constexpr int kMaxThreads = 1024;

int positive(const std::string& text, const char* who) {
  size_t end = 0;
  int value = 0;
  try {
    value = std::stoi(text, &end);
  } catch (const std::exception&) {
    end = std::string::npos;
  }
  if (end != text.size() || value < 1 || value > kMaxThreads)
    throw std::invalid_argument(std::string(who) + ": wanted a number of threads from 1 to " +
                                std::to_string(kMaxThreads) + ", got '" + text + "'");
  return value;
}

std::atomic<int> chosen_threads{0};

}  // namespace

int num_threads() {
  int threads = chosen_threads.load();
  if (threads > 0) return threads;
  const char* text;
  if ((text = std::getenv("FUSEDLSTM_NUM_THREADS")) && *text) {
    threads = positive(text, "FUSEDLSTM_NUM_THREADS");
  } else if ((text = std::getenv("OMP_NUM_THREADS")) && *text) {
    const std::string list(text);  // a list gives the number for each nesting level: the first counts
    threads = positive(list.substr(0, list.find(',')), "OMP_NUM_THREADS");
  } else {
    threads = std::min(usable_cpus(), kMaxThreads);
  }
  chosen_threads.store(threads);
  return threads;
}

void set_num_threads(int threads) {
  chosen_threads.store(positive(std::to_string(threads), "set_num_threads"));
}

bool is_main_thread() {
#if defined(__linux__)
  // Two system calls take longer than a small step: they are asked again only after a fork.
  static std::atomic<int> forks{0};
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  static_cast<void>(registered);
  thread_local int asked_after = -1;
  thread_local bool main = false;
  const int now = forks.load(std::memory_order_relaxed);
  if (asked_after != now) {
    asked_after = now;
    main = getpid() == gettid();
  }
  return main;
#else
  return pthread_main_np() != 0;
#endif
}

void pause_forever() { std::this_thread::sleep_for(std::chrono::hours(1)); }

void Team::barrier() {
  if (threads_ == 1) return poll();
  const unsigned phase = state_.phase.load(std::memory_order_acquire);
  if (state_.arrived.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    state_.arrived.store(0, std::memory_order_relaxed);
    state_.phase.fetch_add(1, std::memory_order_acq_rel);
    state_.phase.notify_all();
  } else {
    // Who leaves the job early says so, then changes the phase: either is seen here.
    if (state_.stop.load(std::memory_order_relaxed)) throw Interrupted();
    const Scope scope(Phase::kWait);
    wait_while(state_.phase, phase, kYieldsInJob);
  }
  poll();
}

void Team::poll() {
  if (state_.stop.load(std::memory_order_relaxed)) throw Interrupted();
  if (!asks_ || !state_.poll) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - state_.last_poll < kPollEvery) return;
  state_.last_poll = now;
  if (state_.poll()) throw Interrupted();
}

void run_job(int threads, const Poll& poll, const std::function<void(Team&)>& job) {
  if (threads <= 0) threads = num_threads();
  if (threads > 1 && pool().try_run(threads, poll, job)) return;
  JobState state(1, poll);
  run_share(state, 0, job);
  if (state.error) std::rethrow_exception(state.error);
}

}  // namespace fusedlstm
