// Step-by-step inference: rows of states that live on between calls, all memory taken once.
//
// Row j of every matrix belongs to stream ids()[j]; rows lie in the order in which they joined. A row's
// result does not depend on which others are there.
#pragma once

#include <memory>
#include <vector>

#include "lstm/packing.h"
#include "runtime/profiler.h"
#include "runtime/threads.h"

namespace fusedlstm {

template <class T>
class Stream {
 public:
  // One direction only.
  Stream(std::shared_ptr<const PackedWeights<T>> weights, ptrdiff_t capacity);

  const LstmShape& shape() const { return weights_->shape; }
  ptrdiff_t capacity() const { return capacity_; }
  ptrdiff_t rows() const { return static_cast<ptrdiff_t>(ids_.size()); }
  const std::vector<int64_t>& ids() const { return ids_; }

  // Whether it is quicker to step through N sequences in one pass each step than to make the input products
  // of all steps first: few rows, and one step or weights that the first-level cache nearly holds.
  static bool pays(const PackedWeights<T>& w, ptrdiff_t N, ptrdiff_t time);

  // States are (L, H), H apart or layer_row; null for 0.
  // A new last row, which needs rows() < capacity(). Ids are never used twice.
  int64_t join(const T* h, const T* c, ptrdiff_t layer_row = 0);
  void leave(ptrdiff_t row);  // later rows move up by one
  void save(ptrdiff_t row, T* h, T* c, ptrdiff_t layer_row = 0) const;
  void restore(ptrdiff_t row, const T* h, const T* c, ptrdiff_t layer_row = 0);

  // The next step of all rows: x (rows, I), y (rows, H), each row x_row and y_row after the last.
  void step(const T* x, ptrdiff_t x_row, T* y, ptrdiff_t y_row);
  // x (rows, steps, I) -> y (rows, steps, H). After Interrupted the states are those of the last whole step.
  void run(ptrdiff_t steps, const T* x, T* y, const Poll& poll);

 private:
  struct Layer {
    Buffer<T> h, h_next, c;  // (capacity, H_pad)
    StepForward<T> step;     // what never changes is filled in once: it takes long beside a small step
  };
  StepWork work(ptrdiff_t steps) const;
  void step_layers(const T* x, ptrdiff_t x_row, T* y, ptrdiff_t y_row, StepTicks* ticks);

  std::shared_ptr<const PackedWeights<T>> weights_;
  ptrdiff_t capacity_, pitch_, input_weights_ = 0, recurrent_weights_ = 0;
  std::vector<int64_t> ids_;
  int64_t next_id_ = 0;
  std::vector<Layer> layers_;
  Buffer<T> gates_;  // (capacity, 4 H_pad): W x + b of the layer at hand
};

}  // namespace fusedlstm
