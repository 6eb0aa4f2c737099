#include "runtime/exclusive.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <utility>

namespace fusedlstm {
namespace {

constexpr auto kPollEvery = std::chrono::milliseconds(30);

struct Held {
  std::mutex mutex;
  std::condition_variable released;
  std::vector<Exclusive::Range> ranges;
};
std::atomic<Held*> held_now{nullptr};

// Never destroyed: calls may wait here while the process ends. A forked child has none of the other threads,
// so it leaves what they held alone and begins anew.
Held& held() {
  static const int registered = [] {
    held_now.store(new Held);
    return pthread_atfork(nullptr, nullptr, [] { held_now.store(new Held); });
  }();
  static_cast<void>(registered);
  return *held_now.load();
}

bool overlap(const Exclusive::Range& a, const Exclusive::Range& b) {
  const auto end = [](const Exclusive::Range& r) { return static_cast<const char*>(r.begin) + r.bytes; };
  const std::less<const void*> less;
  return less(a.begin, end(b)) && less(b.begin, end(a));
}

}  // namespace

Exclusive::Exclusive(std::vector<Range> ranges, const Poll& poll) : ranges_(std::move(ranges)) {
  std::erase_if(ranges_, [](const Range& range) { return !range.begin || range.bytes == 0; });
  Held& all = held();
  std::unique_lock lock(all.mutex);
  const auto free = [&] {
    for (const Range& mine : ranges_)
      for (const Range& other : all.ranges)
        if (overlap(mine, other)) return false;
    return true;
  };
  while (!all.released.wait_for(lock, kPollEvery, free)) {
    lock.unlock();  // the poll may run Python
    if (poll && poll()) throw Interrupted();
    lock.lock();
  }
  all.ranges.insert(all.ranges.end(), ranges_.begin(), ranges_.end());
}

Exclusive::~Exclusive() {
  Held& all = held();
  {
    const std::lock_guard lock(all.mutex);
    std::erase_if(all.ranges, [&](const Range& range) {
      return std::any_of(ranges_.begin(), ranges_.end(),
                         [&](const Range& mine) { return mine.begin == range.begin; });
    });
  }
  all.released.notify_all();
}

}  // namespace fusedlstm
