// round_trip_ns(): nanoseconds in which a cache line goes from the first CPU that this process may use to
// another and back, for the farthest of the others; 0 with one CPU. Linux. A library, compiled by harness.py.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace {

constexpr int kTrials = 15, kTrips = 100;  // the best trial counts: others may be interrupted

void stay_on(int cpu) {
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(cpu, &only);
  sched_setaffinity(0, sizeof only, &only);
}

double trip_to(int cpu) {
  using Clock = std::chrono::steady_clock;
  alignas(64) std::atomic<int> line{0};  // odd: there
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
  double best = 1e9;
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

}  // namespace

extern "C" double round_trip_ns() {
  cpu_set_t all;
  CPU_ZERO(&all);
  sched_getaffinity(0, sizeof all, &all);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &all)) cpus.push_back(cpu);
  stay_on(cpus[0]);
  double farthest = 0;
  for (size_t k = 1; k < cpus.size(); ++k) farthest = std::max(farthest, trip_to(cpus[k]));
  sched_setaffinity(0, sizeof all, &all);
  return farthest;
}
