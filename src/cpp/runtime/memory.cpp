#include "runtime/memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <deque>
#include <iterator>
#include <mutex>

namespace fusedlstm {
namespace {

constexpr size_t kKeepFrom = size_t{1} << 16;                      // smaller blocks go to malloc
constexpr size_t kKeepBytes = size_t{1} << 30, kKeepBlocks = 256;  // kept at most
constexpr size_t kHugePage = size_t{2} << 20;

struct Kept {
  std::mutex mutex;
  struct Block {
    void* memory;
    size_t bytes;
  };
  std::deque<Block> blocks;  // oldest first
  size_t bytes = 0;
};
// Never destroyed: buffers may be released while the process ends. Held over a fork, so that the child can
// use it.
Kept& kept() {
  static Kept* const instance = [] {
    Kept* const made = new Kept;
    pthread_atfork([] { kept().mutex.lock(); }, [] { kept().mutex.unlock(); }, [] { kept().mutex.unlock(); });
    return made;
  }();
  return *instance;
}

}  // namespace

void* aligned_allocate(size_t bytes) {
  if (bytes >= kKeepFrom) {
    Kept& k = kept();
    const std::lock_guard lock(k.mutex);
    for (auto block = k.blocks.rbegin(); block != k.blocks.rend(); ++block) {  // the warmest first
      if (block->bytes != bytes) continue;
      void* const memory = block->memory;
      k.bytes -= bytes;
      k.blocks.erase(std::next(block).base());
      return memory;
    }
  }
  const size_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  if (bytes > ~size_t{0} - alignment) throw std::bad_alloc();
  const size_t whole = (bytes + alignment - 1) / alignment * alignment;
  void* const memory = std::aligned_alloc(alignment, whole);
  if (!memory) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (bytes >= kHugePage) madvise(memory, whole, MADV_HUGEPAGE);  // a hint: refusal changes nothing
#endif
  return memory;
}

void aligned_release(void* memory, size_t bytes) noexcept {
  if (bytes < kKeepFrom || bytes > kKeepBytes / 4) return std::free(memory);
  Kept& k = kept();
  const std::lock_guard lock(k.mutex);
  try {
    k.blocks.push_back({memory, bytes});
  } catch (const std::bad_alloc&) {
    return std::free(memory);
  }
  k.bytes += bytes;
  while (k.bytes > kKeepBytes || k.blocks.size() > kKeepBlocks) {
    std::free(k.blocks.front().memory);
    k.bytes -= k.blocks.front().bytes;
    k.blocks.pop_front();
  }
}

}  // namespace fusedlstm
