// What the parts of a step have to do, for the profiler.
#pragma once

#include <algorithm>

#include "lstm/packing.h"
#include "runtime/profiler.h"

namespace fusedlstm {

constexpr double kActivationFlops = 4 * 20;  // i, f, o, g of a unit

// The gates of so many units, c = f c + i g and h = o tanh(c): c is read, c and h are written.
template <class T>
Work gates_work(ptrdiff_t units) {
  return elements_work(units, kActivationFlops + 3 + 21, 3 * sizeof(T));
}

// Of the step that `s` describes, with I inputs in the same pass (0: their product is made already).
template <class T>
StepWork step_work(const CellForward<T>& s, ptrdiff_t I, Compute compute) {
  const ptrdiff_t units = std::min(s.unit_end, s.H) - std::min(s.unit_begin, s.H), cells = s.M * units;
  const Work four_gates = elements_work(cells, 0, 4 * sizeof(T)),
             recurrent = product_work(s.M, 4 * units, s.H, operand_size<T>(compute), 0);
  return {I > 0 ? product_work(s.M, 4 * units, I, operand_size<T>(compute), 0) : Work{},
          I > 0 ? recurrent : recurrent + four_gates,
          s.gates ? gates_work<T>(cells) + four_gates : gates_work<T>(cells)};
}

}  // namespace fusedlstm
