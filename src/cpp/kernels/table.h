// What every instruction set provides: one table of functions per level and type, chosen once at run time.
// Pointers carry their shape in the comment; strides are in elements. Nothing here allocates, locks or fails.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusedlstm {

constexpr int kTileRows = 6;                // rows of a register tile, on every level
constexpr ptrdiff_t kReductionBlock = 768;  // most rows of a weight-gradient product packed at a time
constexpr ptrdiff_t kReductionColumns = 16 * kTileRows;  // of its A
constexpr ptrdiff_t kSumBlock = 4096;  // elements of a sum in T; block sums are added in double

// What is packed has B by its rows, source[k * pitch + n], or by its columns, source[n * pitch + k].
enum class SourceBy { kRows, kColumns };

// The rows of the source, when they are fewer than the packed ones: groups of `rows`, each followed by rows
// of zeros up to `padded`, a multiple of 16. Weights (4H, n) become (4 H_pad, n). Without: as they are.
struct RowGroups {
  ptrdiff_t rows = PTRDIFF_MAX, padded = PTRDIFF_MAX;

  ptrdiff_t source(ptrdiff_t row) const { return row / padded * rows + row % padded; }
  // Of n packed rows from `row` on, all of one group, how many the source has
  ptrdiff_t there(ptrdiff_t row, ptrdiff_t n) const {
    const ptrdiff_t left = rows - row % padded;
    return left <= 0 ? 0 : left < n ? left : n;
  }
};

// C (M, N) = init (M, N) + A (M, K) B (K, N); init_row 0 gives every row the same init, init null means 0.
template <class T>
struct Gemm {
  ptrdiff_t M, N, K;
  const T* a;
  ptrdiff_t a_row;
  const T* b;  // packed panels
  const T* init;
  ptrdiff_t init_row;
  T* c;
  ptrdiff_t c_row;
  ptrdiff_t b_panel = 0;    // elements from one panel of B to the next; 0: K rows of a panel
  bool descending = false;  // few rows: columns from the last to the first, as those of CellForward
};

// C (M, N) += A^T B over R rows, in the order of a_rows, b_rows (null: 0, 1, 2 ...), with sums in C's type.
template <class Operand, class Sum>
struct RightSideOf {
  ptrdiff_t N;
  const Operand* b;
  ptrdiff_t b_row;
  const int32_t* b_rows;
  Sum* c;
  ptrdiff_t c_row;
};
template <class Operand, class Sum>
struct GemmTransposedOf {
  ptrdiff_t M, R;
  const Operand* a;
  ptrdiff_t a_row;
  const int32_t* a_rows;
  RightSideOf<Operand, Sum> side;
  Operand* scratch;                     // transposed_scratch elements
  RightSideOf<Operand, Sum> also = {};  // another product of the same A; N = 0: none
  bool packed = false;  // one block of rows, and scratch still has their B from the call before
};
template <class T>
using RightSide = RightSideOf<T, T>;
template <class T>
using GemmTransposed = GemmTransposedOf<T, T>;
inline ptrdiff_t transposed_scratch(ptrdiff_t N, ptrdiff_t panel, ptrdiff_t also = 0) {
  const ptrdiff_t panels = (N + panel - 1) / panel + (also + panel - 1) / panel;
  return kReductionBlock * (panels * panel + kReductionColumns);
}

// bfloat16 is the upper half of a float32, held as uint16_t. Rows of a bfloat16 matrix are zero from their
// length to the next multiple of kLowBlock, and start on an address that is a multiple of 4 bytes.
constexpr ptrdiff_t kLowBlock = 32;
constexpr ptrdiff_t kLowPanel = 16;  // columns of a packed panel
constexpr ptrdiff_t low_padded(ptrdiff_t n) { return (n + kLowBlock - 1) / kLowBlock * kLowBlock; }
inline ptrdiff_t low_packed_size(ptrdiff_t K, ptrdiff_t N) {
  return low_padded(K) * ((N + kLowPanel - 1) / kLowPanel * kLowPanel);
}

constexpr ptrdiff_t int8_panel(ptrdiff_t K) { return low_padded(K) * kLowPanel + 4 * kLowPanel; }

// Where the panels of a bfloat16 or int8 matrix lie: elements from one to the next, and from one step of k to
// the next, of which bfloat16 has two and int8 four at a time.
struct LowLayout {
  ptrdiff_t panel, step;
};
constexpr LowLayout bf16_layout(ptrdiff_t K) { return {low_padded(K) * kLowPanel, 2 * kLowPanel}; }
constexpr LowLayout int8_layout(ptrdiff_t K) { return {int8_panel(K), 4 * kLowPanel}; }
// Four panels side by side, as one: those of the gates of kLowPanel units.
constexpr ptrdiff_t kLowGates = 4;
constexpr LowLayout four_gates(LowLayout one) { return {kLowGates * one.panel, kLowGates * one.step}; }
// Goes on to a later block of a product.
template <class Product>
void next_blocks(Product& g, ptrdiff_t count) {
  g.blocks -= count;
  g.b += count * g.b_block;
  if (g.init) g.init += count * g.c_block;
  g.c += count * g.c_block;
}

// C (M, N) = init (M, N) + A (M, K) B (K, N) with bfloat16 A and B and float32 init and C.
struct GemmBf16 {
  ptrdiff_t M, N, K;
  const uint16_t* a;
  ptrdiff_t a_row;
  const uint16_t*
      b;  // panels of kLowPanel columns, each [k/2][column][2], padded with zeros to low_padded(K)
  ptrdiff_t b_panel;   // elements from one panel to the next
  const float* init;   // null means 0
  ptrdiff_t init_row;  // 0: the same for every row
  float* c;
  ptrdiff_t c_row;
  ptrdiff_t b_step = 2 * kLowPanel;  // elements from one pair of k to the next
  ptrdiff_t c_panel = kLowPanel;     // elements from one panel of C, and of init, to the next
  const uint16_t* ahead = nullptr;   // panels that are needed next, laid out as B: fetched meanwhile
  // As many products of the same A; B of the next lies b_block on, its C and init c_block. Where there are
  // more than one, each has kLowGates panels.
  ptrdiff_t blocks = 1, b_block = 0, c_block = 0;
};

using RightSideBf16 = RightSideOf<uint16_t, float>;
using GemmTransposedBf16 = GemmTransposedOf<uint16_t, float>;
constexpr ptrdiff_t kReductionColumnsBf16 = 96;
inline ptrdiff_t transposed_scratch_bf16(ptrdiff_t N, ptrdiff_t also = 0) {
  return low_packed_size(kReductionBlock, N) + low_packed_size(kReductionBlock, also) +
         kReductionBlock * kReductionColumnsBf16;
}

struct Bf16Kernels {
  // y (rows, padded) = x (rows, n) rounded to nearest even, and zeros from n on
  void (*round_rows)(ptrdiff_t rows, ptrdiff_t n, ptrdiff_t padded, const float* x, ptrdiff_t x_row,
                     uint16_t* y, ptrdiff_t y_row);
  // B, rounded, to panels laid out as those of a product
  void (*pack)(ptrdiff_t K, ptrdiff_t N, const float* source, ptrdiff_t pitch, SourceBy by, RowGroups groups,
               uint16_t* panels, LowLayout layout);
  void (*gemm)(const GemmBf16&);
  void (*gemm_transposed)(const GemmTransposedBf16&);
};

// C (M, N) = init + column_scale * (row_scale * (A B)) with int8 A and B and sums exact in int32. Rows of
// init, and column_scale, go on to a multiple of kLowPanel.
struct GemmInt8 {
  ptrdiff_t M, N, K;
  const int8_t* a;  // rows as those of bfloat16
  ptrdiff_t a_row;
  const int8_t* b;    // panels, each [k/4][column][4] and then 128 times the sum of each column
  ptrdiff_t b_panel;  // elements from one to the next
  const float* init;
  ptrdiff_t init_row;
  float* c;
  ptrdiff_t c_row;
  const float* column_scale;
  const float* row_scale = nullptr;  // null: 1
  ptrdiff_t b_step = 4 * kLowPanel;  // elements from one four of k to the next, and on to the sums
  ptrdiff_t c_panel = kLowPanel;     // elements from one panel of C, init and column_scale to the next
  ptrdiff_t blocks = 1, b_block = 0, c_block = 0;  // as those of bfloat16; c_block for column_scale too
};
constexpr ptrdiff_t kInt8MostTerms = 1 << 16;  // of a sum: 255 * 127 * 2^16 < 2^31

struct Int8Kernels {
  // y = x / scale rounded to nearest even; scale = max |x| / 127 of each row, or 1 / 127 where scales is null
  void (*quantise_rows)(ptrdiff_t rows, ptrdiff_t n, ptrdiff_t padded, const float* x, ptrdiff_t x_row,
                        int8_t* y, ptrdiff_t y_row, float* scales);
  // B[k][n] = source[k + n * n_stride] / scales[n] to panels, with scales as above for each column
  void (*pack)(ptrdiff_t K, ptrdiff_t N, const float* source, ptrdiff_t n_stride, int8_t* panels,
               LowLayout layout, float* scales);
  void (*gemm)(const GemmInt8&);
};

// Readings of the processor's counter that the parts of steps took.
struct StepTicks {
  uint64_t input, recurrent, gates;
};

// One step of M rows and the unit blocks [unit_begin, unit_end) (multiples of lanes) of a layer of H units.
// Gate rows are [4][H_pad], gates in the order i f g o.
template <class T>
struct CellForward {
  ptrdiff_t M, H, H_pad, unit_begin, unit_end;
  const T* h_prev;  // (M, H), h_row apart
  ptrdiff_t h_row;
  const T* recurrent;  // packed by pack_recurrent; null: `input` holds the whole sum
  const T* input;      // (M, 4, H_pad): W x + b
  ptrdiff_t input_row;
  T* gates;  // (M, 4, H_pad) or null; may be `input` itself
  ptrdiff_t gates_row;
  const T* c_prev;  // (M, H_pad), c_row apart; may be c
  T* c;
  ptrdiff_t c_row;
  T* h;  // (M, H_pad), h_row apart
  // Units from the last to the first: of two steps that differ in this, the second begins with the weights
  // that the first has just read, which a cache still has.
  bool descending = false;
  StepTicks* ticks = nullptr;  // what the parts take is added there
};

// One step of one or two rows from its input: cell.input is the bias (input_row 0), or any rows that W x is
// to be added to; I may be 0.
constexpr ptrdiff_t kStepRows = 2;  // with more, a product of its own and cell_forward are as fast or faster
template <class T>
struct StepForward {
  CellForward<T> cell;
  ptrdiff_t I;
  const T* x;  // (M, I), x_row apart
  ptrdiff_t x_row;
  const T* weights;  // packed panels (I, 4 H_pad)
};

// Gate derivatives of M rows, written over the gates; dh_total = dh + dy, dc becomes the derivative of
// c_prev.
template <class T>
struct CellBackward {
  ptrdiff_t M, H_pad, unit_begin, unit_end;
  T* gates;  // (M, 4, H_pad): activations in, derivatives of pre-activations out
  ptrdiff_t gates_row;
  const T* c_prev;  // (M, H_pad)
  const T* c;
  ptrdiff_t c_row;
  const T* dh;  // (M, H_pad), d_row apart
  T* dc;
  ptrdiff_t d_row;
  const T* dy;  // (M, H_pad) or null
  ptrdiff_t dy_row;
};

// Additive attention scores (S) of one row: v . tanh(k_s + query + coverage_s w).
template <class T>
struct AdditiveScores {
  ptrdiff_t A, S;
  const T* keys;      // panels (A, S)
  const T* query;     // (A)
  const T* v;         // (A)
  const T* w;         // (A), null: no coverage
  const T* coverage;  // (S)
  T* scores;          // (S)
};

// From the derivatives of the scores (S). Assigned: d_query, d_v, d_w (A). Added to: d_keys, d_coverage (S).
template <class T>
struct AdditiveBackward {
  AdditiveScores<T> forward;  // but for its scores
  const T* d_scores;
  T* d_keys;  // panels (A, S)
  T *d_query, *d_v, *d_w, *d_coverage;
};

struct DropoutKey {
  uint64_t seed;
  uint32_t stream;
};

template <class T>
struct SgdStep {
  T lr, momentum, weight_decay, gradient_scale;
  bool nesterov;
};
template <class T>
struct AdamStep {
  T step_size, beta1, beta2, one_minus_beta1, one_minus_beta2, eps, bias2_root, weight_decay, shrink,
      gradient_scale;
};

template <class T>
struct Kernels {
  int lanes;
  int panel;  // columns of a packed panel

  void (*pack)(ptrdiff_t K, ptrdiff_t N, const T* source, ptrdiff_t pitch, SourceBy by, RowGroups groups,
               T* panels);
  void (*pack_recurrent)(ptrdiff_t H, ptrdiff_t H_pad, const T* weight_hh, T* packed);
  void (*gemm)(const Gemm<T>&);
  void (*gemm_transposed)(const GemmTransposed<T>&);

  void (*cell_forward)(const CellForward<T>&);
  // The two halves of forward, for gates made again: activations over `input`; then c = f c_prev + i g from
  // them
  void (*cell_gates)(const CellForward<T>&);
  void (*cell_states)(const CellForward<T>&);
  void (*cell_backward)(const CellBackward<T>&);
  void (*step_forward)(const StepForward<T>&);

  // One row of gates (4, H_pad) in 16 bits, and back
  void (*narrow_gates)(ptrdiff_t H_pad, const T* gates, uint16_t* narrow);
  void (*widen_gates)(ptrdiff_t H_pad, const uint16_t* narrow, T* gates);

  // y[0..n) += x
  void (*add)(ptrdiff_t n, const T* x, T* y);
  // sums[0..n) += rows in the given order (null: 0, 1, 2 ...)
  void (*add_rows)(ptrdiff_t rows, ptrdiff_t n, const T* x, ptrdiff_t x_row, const int32_t* order, T* sums);
  // y = x * keep / (1 - rate) of one row whose counter is (row, step); in place allowed
  void (*dropout_row)(ptrdiff_t n, DropoutKey key, uint32_t row, uint32_t step, T rate, const T* x, T* y);
  // log sum exp of V logits, the largest logit in *largest; with d: d = scale * softmax
  T (*softmax_row)(ptrdiff_t V, const T* logits, T scale, T* d, T* largest);
  // sum over j < n of z_j - reference
  T (*sum_of_differences)(ptrdiff_t n, const T* z, T reference);
  void (*add_constant)(ptrdiff_t n, T constant, T* x);
  void (*additive_scores)(const AdditiveScores<T>&);
  void (*additive_backward)(const AdditiveBackward<T>&);
  double (*sum_of_squares)(ptrdiff_t n, const T* x);
  double (*squared_error)(ptrdiff_t n, const T* y, const T* target, T factor, T* dy);
  void (*scale)(ptrdiff_t n, T factor, T* x);
  void (*sgd)(ptrdiff_t n, const SgdStep<T>&, const T* gradient, T* velocity, T* parameter);
  void (*adam)(ptrdiff_t n, const AdamStep<T>&, const T* gradient, T* m, T* v, T* parameter);

  // What bounds the rest: fused multiply-adds out of registers, whose FLOPs are returned; reading x[0..n)
  double (*multiply_adds)(ptrdiff_t iterations);
  void (*read)(ptrdiff_t n, const T* x);

  void (*exp)(ptrdiff_t n, const T* x, T* y);
  void (*log)(ptrdiff_t n, const T* x, T* y);
  void (*sigmoid)(ptrdiff_t n, const T* x, T* y);
  void (*tanh)(ptrdiff_t n, const T* x, T* y);
};

struct Level {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  Bf16Kernels bf16;
  Int8Kernels int8;
};

}  // namespace fusedlstm
