// What a generation loop needs of a model: rows of recurrent state that are stepped together.
//
// Row j is one sequence or hypothesis. A row's results do not depend on which others are there. Concrete
// models fill rows by their own prefill.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/cpu.h"
#include "runtime/threads.h"

namespace fusedlstm {

template <class T>
class StepRows {
 public:
  virtual ~StepRows() = default;
  virtual const Kernels<T>& kernels() const = 0;
  virtual ptrdiff_t vocabulary() const = 0;  // V
  virtual ptrdiff_t capacity() const = 0;

  // Feeds tokens[j] to row j < count; logits (count, V) of what follows. All threads of the team call; ends
  // with a barrier. count >= 1.
  virtual void step_share(Team& team, ptrdiff_t count, const int32_t* tokens, T* logits) = 0;

  // Row j becomes what row from[j] was, j < count: rows may move, double and vanish. One thread calls.
  virtual void gather(ptrdiff_t count, const int32_t* from) = 0;

  // All that a row carries, as state_size(row) numbers; but not the source that it looks at, if any.
  virtual ptrdiff_t state_size(ptrdiff_t row) const = 0;
  virtual void save(ptrdiff_t row, T* state) const = 0;
  virtual void load(ptrdiff_t row, const T* state) = 0;
};

}  // namespace fusedlstm
