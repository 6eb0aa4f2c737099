// Memory aligned to cache lines. Large blocks that are given back are kept for the next request of the same
// size: a training step asks for the same tapes again and again, and fresh pages from the system cost as much
// as the gates.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <span>

namespace fusedlstm {

constexpr size_t kAlignment = 64;

void* aligned_allocate(size_t bytes);  // throws std::bad_alloc
void aligned_release(void* memory, size_t bytes) noexcept;

// A fixed number of T, not initialised unless asked for.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(ptrdiff_t size)
      : memory_(size > 0 ? static_cast<T*>(aligned_allocate(bytes_for(size))) : nullptr,
                Release{size > 0 ? bytes_for(size) : 0}),
        size_(size) {}
  static Buffer zeros(ptrdiff_t size) {
    Buffer buffer(size);
    for (ptrdiff_t j = 0; j < size; ++j) buffer.data()[j] = T(0);
    return buffer;
  }
  T* data() { return memory_.get(); }
  const T* data() const { return memory_.get(); }
  ptrdiff_t size() const { return size_; }
  size_t bytes() const { return static_cast<size_t>(size_) * sizeof(T); }
  T& operator[](ptrdiff_t j) { return memory_.get()[j]; }
  const T& operator[](ptrdiff_t j) const { return memory_.get()[j]; }

 private:
  static size_t bytes_for(ptrdiff_t size) {
    if (static_cast<size_t>(size) > (~size_t{0} >> 1) / sizeof(T)) throw std::bad_alloc();
    return static_cast<size_t>(size) * sizeof(T);
  }
  struct Release {
    size_t bytes = 0;
    void operator()(T* memory) const noexcept { aligned_release(memory, bytes); }
  };
  std::unique_ptr<T, Release> memory_;
  ptrdiff_t size_ = 0;
};

// Elements between the rows of an internal matrix: whole vectors on every level, and no multiple of 4 KiB,
// where rows would compete for the same few cache sets.
template <class T>
constexpr ptrdiff_t row_pitch(ptrdiff_t n) {
  const ptrdiff_t padded = (n + 15) / 16 * 16;
  return padded > 0 && padded * static_cast<ptrdiff_t>(sizeof(T)) % 2048 == 0 ? padded + 16 : padded;
}

// The same for rows of bfloat16, which are zero up to a multiple of 32.
constexpr ptrdiff_t low_pitch(ptrdiff_t n) {
  const ptrdiff_t padded = (n + 31) / 32 * 32;
  return padded > 0 && padded * 2 % 2048 == 0 ? padded + 32 : padded;
}

}  // namespace fusedlstm
