// Which instruction sets this build has, which of them this machine can run, and the one in use.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.h"

namespace fusedlstm {

// Levels from lowest to highest.
std::vector<const Level*> compiled_levels();
std::vector<const Level*> runnable_levels();

// The level in use: the highest runnable one, or what FUSEDLSTM_ISA names. Throws std::invalid_argument when
// that is unknown or cannot run here.
const Level& current_level();
void set_level(const std::string& name);

template <class T>
const Kernels<T>& kernels_of(const Level& level) {
  if constexpr (sizeof(T) == 4)
    return level.f32;
  else
    return level.f64;
}

std::string cpu_brand();
std::vector<std::string> cpu_features();
// Bytes of the data caches of one core, 0 where unknown: L1d, L2, L3.
std::vector<long> cache_sizes();

}  // namespace fusedlstm
