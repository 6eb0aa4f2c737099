// Whether numbers are numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace fusedlstm {

// Of n values: no NaN and no infinity.
template <class T>
bool all_finite(const T* x, ptrdiff_t n) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  Bits exponent;
  std::memcpy(&exponent, &infinity, sizeof exponent);
  Bits found = 0;  // an exponent of ones
  for (ptrdiff_t j = 0; j < n; ++j) {
    Bits bits;
    std::memcpy(&bits, x + j, sizeof bits);
    found |= static_cast<Bits>((bits & exponent) == exponent);
  }
  return found == 0;
}

}  // namespace fusedlstm
