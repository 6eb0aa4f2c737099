// Profiles that begin and end while other threads are in and out of scopes, and what they count.
#include "runtime/profiler.h"

#include <atomic>
#include <cmath>
#include <thread>

#include "check.h"
#include "runtime/threads.h"

namespace fusedlstm_tests {
namespace {

using namespace fusedlstm;

void work(int threads, int repeats) {
  run_job(threads, nullptr, [&](Team& team) {
    for (int repeat = 0; repeat < repeats; ++repeat) {
      const Scope scope(Phase::kStep, 3, [] { return Work{6, 2}; });
      team.barrier();
    }
  });
}

double seconds_of(const ThreadReport& thread) {
  double sum = 0;
  for (const PhaseCount& count : thread.counts) sum += count.seconds;
  return sum;
}

}  // namespace

void test_profiler(int max_threads) {
  constexpr int repeats = 50;
  start_profile(true);
  work(max_threads, repeats);
  const ProfileReport report = stop_profile();
  uint64_t calls = 0, intervals = 0;
  double flops = 0;
  for (const ThreadReport& thread : report.threads) {
    expect(seconds_of(thread) <= 1.01 * report.seconds,
           "a thread is no longer in scopes than the profile lasts");
    intervals += thread.intervals.size();
    for (const PhaseCount& count : thread.counts) {
      if (count.phase != Phase::kStep) continue;
      expect(count.layer == 3, "the layer is counted apart");
      calls += count.calls;
      flops += count.flops;
    }
  }
  expect(report.threads.size() == static_cast<size_t>(max_threads), "every thread is in the report");
  expect(!report.threads.empty() && report.threads[0].name == "caller", "the caller comes first");
  expect(calls == static_cast<uint64_t>(max_threads * repeats), "every scope is counted once");
  expect(std::abs(flops - 6.0 * static_cast<double>(calls)) < 0.5, "the work of every scope is counted");
  expect(intervals >= calls, "every scope has its interval");

  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop.load()) work(max_threads, 3);
  });
  for (int profile = 0; profile < 20; ++profile) {
    start_profile(profile % 2 == 0);
    work(1, 5);
    const ProfileReport one = stop_profile();
    uint64_t own = 0;
    for (const PhaseCount& count : one.threads.at(0).counts)
      if (count.phase == Phase::kStep) own += count.calls;
    expect(own == 5, "a profile has the calls of its own time only");
  }
  stop.store(true);
  other.join();
}

}  // namespace fusedlstm_tests
