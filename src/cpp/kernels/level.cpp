// The kernel table of one instruction set. Compiled once per level; the build defines FUSEDLSTM_LEVEL (its
// name) and FUSEDLSTM_LEVEL_<NAME>.
#include "kernels/additive.h"
#include "kernels/bf16.h"
#include "kernels/ceilings.h"
#include "kernels/cell.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/int8.h"
#include "kernels/step.h"

#define FUSEDLSTM_JOIN_(a, b) a##b
#define FUSEDLSTM_JOIN(a, b) FUSEDLSTM_JOIN_(a, b)
#define FUSEDLSTM_TEXT_(a) #a
#define FUSEDLSTM_TEXT(a) FUSEDLSTM_TEXT_(a)

namespace fusedlstm {
namespace {

template <class T>
constexpr Kernels<T> kernels() {
  return {
      .lanes = kLanes<T>,
      .panel = kPanel<T>,
      .pack = pack<T>,
      .pack_recurrent = pack_recurrent<T>,
      .gemm = gemm<T>,
      .gemm_transposed = gemm_transposed<T>,
      .cell_forward = cell_forward<T>,
      .cell_gates = cell_gates<T>,
      .cell_states = cell_states<T>,
      .cell_backward = cell_backward<T>,
      .step_forward = step_forward<T>,
      .narrow_gates = narrow_gates<T>,
      .widen_gates = widen_gates<T>,
      .add = add<T>,
      .add_rows = add_rows<T>,
      .dropout_row = dropout_row<T>,
      .softmax_row = softmax_row<T>,
      .sum_of_differences = sum_of_differences<T>,
      .add_constant = add_constant<T>,
      .additive_scores = additive_scores<T>,
      .additive_backward = additive_backward<T>,
      .sum_of_squares = sum_of_squares<T>,
      .squared_error = squared_error<T>,
      .scale = scale<T>,
      .sgd = sgd<T>,
      .adam = adam<T>,
      .multiply_adds = multiply_adds<T>,
      .read = read<T>,
      .exp = exp_array<T>,
      .log = log_array<T>,
      .sigmoid = sigmoid_array<T>,
      .tanh = tanh_array<T>,
  };
}

}  // namespace

extern const Level FUSEDLSTM_JOIN(level_, FUSEDLSTM_LEVEL);
const Level FUSEDLSTM_JOIN(level_, FUSEDLSTM_LEVEL) = {FUSEDLSTM_TEXT(FUSEDLSTM_LEVEL), kernels<float>(),
                                                       kernels<double>(), bf16_kernels<ByVectors<Widened>>(),
                                                       int8_kernels()};

}  // namespace fusedlstm
