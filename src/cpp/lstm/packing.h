// Weights in the layout of the kernels: an immutable snapshot, tied to the instruction set it was packed for.
#pragma once

#include <vector>

#include "lstm/shape.h"
#include "runtime/low_precision.h"

namespace fusedlstm {

// One layer and direction. H_pad = H rounded up to 16; gate columns are [4][H_pad], zero where there is no
// unit.
template <class T>
struct PackedLayer {
  ptrdiff_t inputs;
  Buffer<T> input;               // panels (inputs, 4 H_pad): W_ih^T
  Buffer<T> recurrent;           // blocks of units x 4 gates (H, 4 H_pad): W_hh^T
  Buffer<T> bias;                // (4 H_pad): b_ih + b_hh
  Buffer<T> input_backward;      // panels (4 H_pad, inputs): W_ih; empty when packed for inference only
  Buffer<T> recurrent_backward;  // panels (4 H_pad, H): W_hh
  // The same four in low precision, of which then only these are there. All columns are [4][H_pad], but that
  // the panels of the four gates of kLowPanel units lie side by side in low_recurrent: the product of one row
  // reads its weights from begin to end. The scales of products with h have its 1/127 in them.
  LowMatrix low_input, low_recurrent, low_input_backward, low_recurrent_backward;
};

template <class T>
struct PackedWeights {
  LstmShape shape;
  const Level* level;
  bool backward;
  Compute compute;
  std::vector<PackedLayer<T>> layers;  // by layer * D + direction

  const Kernels<T>& kernels() const { return kernels_of<T>(*level); }
  size_t bytes() const;
};

// parameters: parameter_count(shape) elements.
template <class T>
PackedWeights<T> pack_weights(const LstmShape& shape, const T* parameters, bool backward,
                              Compute compute = Compute::kFull);

}  // namespace fusedlstm
