// Philox4x32-10, a counter-based generator: four random words for every (key, counter), in any order, on any
// thread. Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

namespace fusedlstm {
namespace {

struct Philox4 {
  uint32_t word[4];
};

// The key is `seed`; the counter is (block, step, row, stream), least significant first.
inline Philox4 philox(uint64_t seed, uint32_t stream, uint32_t row, uint32_t step, uint32_t block) {
  uint32_t c0 = block, c1 = step, c2 = row, c3 = stream;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace
}  // namespace fusedlstm
