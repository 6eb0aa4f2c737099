// Sizes of a stack of LSTM layers and the place of each weight in its flat parameter buffer.
// L layers, D directions, I inputs, H hidden units; gates i f g o; PyTorch's names and shapes.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace fusedlstm {

struct LstmShape {
  ptrdiff_t input_size, hidden_size, num_layers;
  bool bidirectional, bias;

  ptrdiff_t directions() const { return bidirectional ? 2 : 1; }
  ptrdiff_t outputs() const { return directions() * hidden_size; }
  ptrdiff_t layer_inputs(ptrdiff_t layer) const { return layer == 0 ? input_size : outputs(); }
  ptrdiff_t hidden_padded() const { return (hidden_size + 15) / 16 * 16; }

  bool operator==(const LstmShape&) const = default;
};

// Offsets in elements of one layer and direction in the flat buffer; every weight starts at a multiple of 16.
struct WeightOffsets {
  ptrdiff_t weight_ih;  // (4H, inputs)
  ptrdiff_t weight_hh;  // (4H, H)
  ptrdiff_t bias_ih;    // (4H,), -1 without bias
  ptrdiff_t bias_hh;    // (4H,), -1 without bias
};

struct NamedWeight {
  std::string name;
  std::vector<ptrdiff_t> shape;
  ptrdiff_t offset;
};

// By layer * D + direction.
std::vector<WeightOffsets> weight_offsets(const LstmShape& s);
std::vector<NamedWeight> weight_table(const LstmShape& s);
ptrdiff_t parameter_count(const LstmShape& s);  // length of the flat buffer, gaps included

}  // namespace fusedlstm
