// What the CPUs that this process may use are to each other just now, and what they give: on a virtual
// machine both change. Linux. A library, compiled by harness.py.
//
//   round_trip_ns()   in which a cache line goes from the first CPU to the farthest of the others and back; 0
//                     with one CPU
//   fma_rate(all)     multiply-adds per second out of registers, of the slowest CPU while all make them; of
//                     the first alone, if all is 0
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <thread>
#include <vector>

#include "vectors.h"

namespace {

using Clock = std::chrono::steady_clock;

void stay_on(int cpu) {
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(cpu, &only);
  sched_setaffinity(0, sizeof only, &only);
}

struct Cpus {
  cpu_set_t all;
  std::vector<int> numbers;

  Cpus() {
    CPU_ZERO(&all);
    sched_getaffinity(0, sizeof all, &all);
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &all)) numbers.push_back(cpu);
  }
};

double trip_to(int cpu) {
  constexpr int kTrials = 15, kTrips = 100;  // the best trial counts: others may be interrupted
  alignas(64) std::atomic<int> line{0};      // odd: there
  const auto wait_for = [&](int value) {
    while (line.load(std::memory_order_acquire) != value) {
    }
  };
  std::thread there([&] {
    stay_on(cpu);
    for (int trip = 0; trip < kTrials * kTrips; ++trip) {
      wait_for(2 * trip + 1);
      line.store(2 * trip + 2, std::memory_order_release);
    }
  });
  double best = std::numeric_limits<double>::infinity();
  for (int trial = 0, trip = 0; trial < kTrials; ++trial) {
    const auto begin = Clock::now();
    for (const int end = trip + kTrips; trip < end; ++trip) {
      line.store(2 * trip + 1, std::memory_order_release);
      wait_for(2 * trip + 2);
    }
    best = std::min(best, std::chrono::duration<double, std::nano>(Clock::now() - begin).count() / kTrips);
  }
  there.join();
  return best;
}

double rate_on(int cpu, std::atomic<int>& missing) {
  constexpr std::chrono::milliseconds kTime{2};
  constexpr long kIterations = 2000;
  stay_on(cpu);
  --missing;
  while (missing > 0) {
  }
  const auto begin = Clock::now();
  double done = 0;
  while (Clock::now() - begin < kTime) done += fma<float>(kIterations);
  return done / std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

extern "C" double round_trip_ns() {
  const Cpus cpus;
  stay_on(cpus.numbers[0]);
  double farthest = 0;
  for (size_t k = 1; k < cpus.numbers.size(); ++k) farthest = std::max(farthest, trip_to(cpus.numbers[k]));
  sched_setaffinity(0, sizeof cpus.all, &cpus.all);
  return farthest;
}

extern "C" double fma_rate(int all) {
  const Cpus cpus;
  std::vector<double> rates(all ? cpus.numbers.size() : 1);
  std::atomic<int> missing{static_cast<int>(rates.size())};
  std::vector<std::thread> others;
  for (size_t k = 1; k < rates.size(); ++k)
    others.emplace_back([&, k] { rates[k] = rate_on(cpus.numbers[k], missing); });
  rates[0] = rate_on(cpus.numbers[0], missing);
  for (std::thread& other : others) other.join();
  sched_setaffinity(0, sizeof cpus.all, &cpus.all);
  return *std::min_element(rates.begin(), rates.end());
}
