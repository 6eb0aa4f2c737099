// Profiles that begin and end while other threads are in and out of scopes, and what they count.
#include "runtime/profiler.h"

#include <atomic>
#include <chrono>
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
      const Scope scope(Phase::kInput, 3, [] { return Work{6, 2}; });
      team.barrier();
    }
  });
}

double seconds_of(const ThreadReport& thread) {
  double sum = 0;
  for (const PhaseCount& count : thread.counts) sum += count.seconds;
  return sum;
}

PhaseCount count_of(const ProfileReport& report, Phase phase) {
  for (const PhaseCount& count : report.threads.at(0).counts)
    if (count.phase == phase) return count;
  return {};
}

// Steps whose kernel says that the gates take a quarter: so they do of the whole.
void parts_divide_the_time() {
  constexpr uint64_t steps = 20, divided = 3;  // the first of every 8
  start_profile(true);
  for (uint64_t step = 0; step < steps; ++step) {
    StepScope scope(2, [] { return StepWork{{}, {6, 2}, {1, 1}}; });
    if (StepTicks* const ticks = scope.ticks()) {
      ticks->recurrent += 300;
      ticks->gates += 100;
    }
  }
  const ProfileReport report = stop_profile();
  const PhaseCount product = count_of(report, Phase::kRecurrent), gates = count_of(report, Phase::kGates);
  expect(product.calls == steps && gates.calls == steps, "every step is counted for each part");
  expect(product.timed == divided && gates.timed == divided, "few steps are divided");
  expect(std::abs(product.flops - 6.0 * steps) < 0.5 && std::abs(gates.bytes - steps) < 0.5,
         "a part has its work");
  expect(product.seconds > 0 && std::abs(product.seconds - 3 * gates.seconds) < 1e-6 * product.seconds,
         "the parts divide the time as the kernel did");
  expect(count_of(report, Phase::kInput).calls == 0, "a part without work is not there");
}

void wait(std::chrono::microseconds least) {
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begin < least) {
  }
}

// Short calls stand for those after them that have as much work, and only for those.
void short_calls_are_sampled() {
  constexpr uint64_t calls = 3100, pairs = 100;
  for (const bool intervals : {false, true}) {
    start_profile(intervals);
    for (uint64_t call = 0; call < calls; ++call) {
      const Scope copy(Phase::kCopy, 0, [] { return Work{0, 8}; });
      const Scope unknown(Phase::kSampling);
    }
    for (uint64_t call = 0; call < calls; ++call) {
      const Scope pack(Phase::kPack, 0, [] { return Work{0, 8}; });
      wait(std::chrono::microseconds(1));
    }
    for (uint64_t call = 0; call < 2 * pairs; ++call) {
      const bool is_long = call % 2 != 0;
      const Scope scope(Phase::kLoss, 0, [&] { return Work{0, is_long ? 1000.0 : 8.0}; });
      if (is_long) wait(std::chrono::microseconds(50));
    }
    const ProfileReport report = stop_profile();
    const PhaseCount copy = count_of(report, Phase::kCopy), loss = count_of(report, Phase::kLoss);
    expect(copy.calls == calls && std::abs(copy.bytes - 8.0 * calls) < 0.5, "every short call is counted");
    expect(intervals ? copy.timed == calls : copy.timed < calls / 10, "few short calls are timed");
    expect(count_of(report, Phase::kSampling).timed == calls, "calls of unknown work are timed");
    expect(count_of(report, Phase::kPack).seconds > 0.9e-6 * calls, "calls that are not timed have a time");
    expect(intervals ? loss.timed == 2 * pairs : loss.timed < 2 * pairs, "short calls among long ones");
    expect(loss.seconds > 0.9 * 50e-6 * pairs, "a short call does not stand for a long one");
  }
}

// A call that took longer than those it stands for: together they last no longer than the call around them.
void samples_fit_into_their_time() {
  constexpr uint64_t calls = 101;
  ProfileReport report;
  PhaseCount copy{};
  for (int attempt = 0; attempt < 100 && copy.timed != 1; ++attempt) {  // until the long one was not too long
    start_profile(false);
    {
      const Scope other(Phase::kOther);
      for (uint64_t call = 0; call < calls; ++call) {
        const Scope scope(Phase::kCopy, 0, [] { return Work{0, 8}; });
        if (call == 0) wait(std::chrono::microseconds(10));
      }
    }
    report = stop_profile();
    copy = count_of(report, Phase::kCopy);
  }
  expect(copy.calls == calls && copy.timed == 1, "one call was timed");
  expect(copy.seconds >= 0.99 * 10e-6, "it has the time that it took");
  expect(seconds_of(report.threads.at(0)) < report.seconds, "a thread has no more time than passed");
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
      if (count.phase != Phase::kInput) continue;
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
      if (count.phase == Phase::kInput) own += count.calls;
    expect(own == 5, "a profile has the calls of its own time only");
  }
  stop.store(true);
  other.join();

  parts_divide_the_time();
  short_calls_are_sampled();
  samples_fit_into_their_time();
}

}  // namespace fusedlstm_tests
