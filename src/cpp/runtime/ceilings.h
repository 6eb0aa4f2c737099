// What this machine can do at most, measured on the spot by all threads of the pool together.
#pragma once

#include <cstddef>

#include "runtime/low_precision.h"

namespace fusedlstm {

// FLOP/s of T's fused multiply-adds out of registers. For bfloat16 and int8, of this package's own product of
// operands in the first-level cache: one loop would not do for all the instructions there are.
template <class T>
double peak_flops(Compute compute, const Poll& poll);

// Bytes/s that the threads read together, each from a buffer of `bytes` of its own, again and again.
double read_bandwidth(ptrdiff_t bytes, const Poll& poll);

}  // namespace fusedlstm
