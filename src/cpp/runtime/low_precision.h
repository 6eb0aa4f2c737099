// Matrices and rows in bfloat16 or int8, and the products of the two; sums are float32.
#pragma once

#include <algorithm>

#include "runtime/cpu.h"
#include "runtime/memory.h"
#include "runtime/threads.h"

namespace fusedlstm {

// The type in which weights, inputs and hidden states are multiplied.
enum class Compute {
  kFull,      // that of the parameters
  kBfloat16,  // with float32 sums, cell states and gates; float32 parameters only
  kInt8,      // the same, for inference
};

// Bytes of what is multiplied.
template <class T>
size_t operand_size(Compute compute) {
  return compute == Compute::kFull ? sizeof(T) : compute == Compute::kBfloat16 ? 2 : 1;
}

// A matrix in panels of bfloat16 or int8.
struct LowMatrix {
  Buffer<uint16_t> bf16;
  Buffer<int8_t> int8;
  Buffer<float> scale;  // int8: of each column
  size_t bytes() const { return bf16.bytes() + int8.bytes() + scale.bytes(); }
};

// Of W (K, N), N in whole panels, what multiplies the elements [begin, end) of a row of x.
LowMatrix low_elements(const LowMatrix& weights, ptrdiff_t K, ptrdiff_t N, ptrdiff_t begin, ptrdiff_t end);

// Rows of n values in the type that products take.
struct LowRows {
  ptrdiff_t n = 0, pitch = 0;
  Buffer<uint16_t> bf16;
  Buffer<int8_t> int8;
  Buffer<float> scale;  // int8: of each row

  LowRows() = default;
  LowRows(Compute compute, ptrdiff_t rows, ptrdiff_t columns)
      : n(columns),
        pitch(low_pitch(columns)),
        bf16(compute == Compute::kBfloat16 ? rows * pitch : 0),
        int8(compute == Compute::kInt8 ? rows * pitch : 0),
        scale(compute == Compute::kInt8 ? rows : 0) {}

  // Whole rows [first, first + rows) = x. `hidden`: values in [-1, 1], which int8 counts in steps of 1/127;
  // others have a scale for each row.
  void round(const Level& level, ptrdiff_t first, ptrdiff_t rows, const float* x, ptrdiff_t x_row,
             bool hidden) {
    if (bf16.size())
      level.bf16.round_rows(rows, n, low_padded(n), x, x_row, bf16.data() + first * pitch, pitch);
    else
      level.int8.quantise_rows(rows, n, low_padded(n), x, x_row, int8.data() + first * pitch, pitch,
                               hidden ? nullptr : scale.data() + first);
  }
  void round_share(const Level& level, ptrdiff_t rows, const float* x, ptrdiff_t x_row, bool hidden,
                   const Team& team) {
    const Share share = share_of(rows, team.thread(), team.threads());
    round(level, share.begin, share.size(), x + share.begin * x_row, x_row, hidden);
  }
  // A block of hidden units of the rows first, first + stride ...; the last block fills up with zeros.
  void round_units(const Level& level, ptrdiff_t first, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t begin,
                   ptrdiff_t count, const float* h, ptrdiff_t h_row) {
    const ptrdiff_t padded = begin + count >= n ? low_padded(n) - begin : count, at = first * pitch + begin;
    if (bf16.size())
      level.bf16.round_rows(rows, count, padded, h, h_row, bf16.data() + at, stride * pitch);
    else
      level.int8.quantise_rows(rows, count, padded, h, h_row, int8.data() + at, stride * pitch, nullptr);
  }
};

inline GemmBf16 bf16_product(const LowRows& a, const LowMatrix& b) {
  return {
      .K = a.n, .a = a.bf16.data(), .a_row = a.pitch, .b = b.bf16.data(), .b_panel = bf16_layout(a.n).panel};
}
inline GemmInt8 int8_product(const LowRows& a, const LowMatrix& b) {
  return {.K = a.n,
          .a = a.int8.data(),
          .a_row = a.pitch,
          .b = b.int8.data(),
          .b_panel = int8_panel(a.n),
          .column_scale = b.scale.data()};
}

}  // namespace fusedlstm
