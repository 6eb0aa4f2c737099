// What the native tests share: reproducible values, comparison of bits, a hash, and a count of failures.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/table.h"

namespace fusedlstm_tests {

inline int failures = 0;

// Report a failure once per call; the message says what was checked.
inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

// Values in [-1, 1) that are the same on every machine: multiples of 2^-20 from a linear congruential
// generator.
class Values {
 public:
  explicit Values(uint32_t seed) : state_(seed * 2654435761u + 1) {}
  double next() {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<double>(static_cast<int32_t>(state_) >> 11) / (1 << 20);
  }
  template <class T>
  std::vector<T> vector(ptrdiff_t size) {
    std::vector<T> values(static_cast<size_t>(size));
    for (T& value : values) value = static_cast<T>(next());
    return values;
  }

 private:
  uint32_t state_;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// FNV-1a over the bytes.
class Hash {
 public:
  template <class T>
  void add(const T* data, size_t size) {
    unsigned char bytes[sizeof(T)];
    for (size_t k = 0; k < size; ++k) {
      std::memcpy(bytes, data + k, sizeof(T));
      for (unsigned char byte : bytes) value_ = (value_ ^ byte) * 0x100000001b3u;
    }
  }
  template <class T>
  void add(const std::vector<T>& values) {
    add(values.data(), values.size());
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325u;
};

template <class T>
const char* type_name() {
  return std::is_same_v<T, float> ? "f32" : "f64";
}

template <class T>
const fusedlstm::Kernels<T>& table_of(const fusedlstm::Level& level) {
  if constexpr (std::is_same_v<T, float>)
    return level.f32;
  else
    return level.f64;
}

inline std::vector<int> thread_counts(int most) { return most > 1 ? std::vector{1, most} : std::vector{1}; }

// Compare every kernel of the level with a scalar reference; adds to `failures`.
void test_kernels(const fusedlstm::Level& level);

// The same for its bfloat16 products.
void test_bf16(const fusedlstm::Level& level);

// int8 products of one table.
void test_int8(const std::string& name, const fusedlstm::Int8Kernels& kernels);

// Whole LSTMs in bfloat16 against those of a level without instructions for it, for 1 and max_threads
// threads.
void test_lstm_bf16(const fusedlstm::Level& level, const fusedlstm::Level& widening, int max_threads);

// One line per type and problem with the hash of its outputs and gradients; adds to `failures` if the number
// of threads (1 or max_threads) changes it.
void test_lstm(const fusedlstm::Level& level, int max_threads, std::vector<std::string>* hashes);

// Beam search over a model made for the test, on the level in use.
void test_beam_search(int max_threads);

// Outputs that are fed back, on the level in use.
void test_one_to_many(int max_threads);

// What profiles count, while other threads work.
void test_profiler(int max_threads);

// Calls of several threads at the same moment.
void test_callers(int max_threads);

// As test_lstm, of decoders with attention.
void test_attention(const fusedlstm::Level& level, int max_threads, std::vector<std::string>* hashes);

}  // namespace fusedlstm_tests
