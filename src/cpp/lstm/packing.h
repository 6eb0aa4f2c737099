// Weights in the layout of the kernels: an immutable snapshot, tied to the instruction set it was packed for.
#pragma once

#include <vector>

#include "lstm/shape.h"
#include "runtime/cpu.h"
#include "runtime/memory.h"

namespace fusedlstm {

// The type in which weights, inputs and hidden states are multiplied.
enum class Compute {
  kFull,      // that of the parameters
  kBfloat16,  // with float32 sums, cell states and gates; float32 parameters only
  kInt8,      // the same, for inference
};

// A matrix in panels of bfloat16 or int8.
struct LowMatrix {
  Buffer<uint16_t> bf16;
  Buffer<int8_t> int8;
  Buffer<float> scale;  // int8: of each column
  size_t bytes() const { return bf16.bytes() + int8.bytes() + scale.bytes(); }
};

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
  // The same four in low precision, of which then only these are there. All columns are [4][H_pad], and the
  // scales of products with h have its 1/127 in them.
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
