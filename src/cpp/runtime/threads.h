// The thread pool: one job per native call, a barrier inside a job, workers asleep between calls.
//
// Threads that wait, inside a job or between jobs, spin a little before they sleep. A call that finds the
// pool busy (another Python thread is in a call) runs on its own thread alone; results do not depend on it.
// After fork the child starts with a new pool.
#pragma once

#include <atomic>
#include <functional>
#include <stdexcept>

namespace fusedlstm {

// Thrown out of a job when the caller's poll asked for the call to end.
struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("interrupted") {}
};

// set_num_threads, else FUSEDLSTM_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs this process may use.
int num_threads();
void set_num_threads(int threads);

// For run_job: all threads, or only the caller's where waking others would take longer than the work.
inline int threads_for(double flops) { return flops < 2e6 ? 1 : 0; }

// Asked now and then by thread 0 of a long call; true means: leave the call. Null: never.
using Poll = std::function<bool()>;

// Whether this is the thread that the process began with.
bool is_main_thread();
// Sleeps until the process ends; may return early.
void pause_forever();

// One thread's place in a running job.
class Team {
 public:
  Team(int thread, int threads, struct JobState& state)
      : thread_(thread), threads_(threads), asks_(thread == 0), state_(state) {}
  int thread() const { return thread_; }
  int threads() const { return threads_; }
  // This thread as a team of its own, for work of which the others take no share.
  Team alone() const {
    Team team = *this;
    team.thread_ = 0;
    team.threads_ = 1;
    return team;
  }
  // Waits for all threads; throws Interrupted in all of them once one has been interrupted.
  void barrier();
  // Throws Interrupted when the call is to end. Costs a clock read on thread 0, a load on others.
  void poll();

 private:
  int thread_, threads_;
  bool asks_;  // the caller's poll
  struct JobState& state_;
};

// The half-open share of `items` that falls to one thread, in multiples of `grain`.
struct Share {
  ptrdiff_t begin, end;
  ptrdiff_t size() const { return end - begin; }
};
inline Share share_of(ptrdiff_t items, int thread, int threads, ptrdiff_t grain = 1) {
  const ptrdiff_t grains = (items + grain - 1) / grain;
  const auto edge = [&](ptrdiff_t t) {
    const ptrdiff_t at = grains * t / threads * grain;
    return at < items ? at : items;
  };
  return {edge(thread), edge(thread + 1)};
}

// Runs job on up to `threads` threads (0: num_threads()), this one included, with subnormals flushed to zero.
void run_job(int threads, const Poll& poll, const std::function<void(Team&)>& job);

}  // namespace fusedlstm
