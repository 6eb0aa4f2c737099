// The layers of an LSTM of one direction, one step at a time inside one native call: for loops in which the
// input of a step depends on the outputs before it. Forward keeps a tape, backward goes back through it step
// by step, and the weight gradients are large products once all steps are done.
//
// Every thread of a team calls each function whose name ends in _share. Rows are those of lstm/rows.h: slots
// 0 .. active(s) - 1 run at step s. Every sum has the order that lstm_forward and lstm_backward give it: all
// results have their bits, but for the weight gradients with bfloat16 products.
#pragma once

#include <vector>

#include "lstm/low_precision.h"
#include "lstm/lstm.h"
#include "lstm/split.h"
#include "lstm/weight_gradients.h"

namespace fusedlstm {

template <class T>
class Stepwise {
 public:
  // initial (L, N, H); the weights are not int8. threads: the most that a team of its calls has. ahead: the
  // first input columns are known for all steps before the loop, so that their products are large ones too.
  Stepwise(const PackedWeights<T>& w, const Rows& rows, const LstmStates<T>& initial, T dropout,
           uint64_t seed, int threads, ptrdiff_t ahead = 0);

  const Rows& rows() const { return tape_.rows; }
  const LstmShape& shape() const { return tape_.shape; }
  size_t bytes() const { return tape_.bytes(); }

  // With columns ahead, before the first step: x (P, I), all packed rows, of which those columns are read.
  void input_ahead_share(Team& team, MatrixRows<T> x);
  // x (active(s), I) of step s, complete on entry, through all layers; ends with a barrier.
  void forward_share(Team& team, ptrdiff_t s, MatrixRows<T> x);
  // h of the last layer after step s and before it, (active(s), H).
  MatrixRows<T> h(ptrdiff_t s) const { return top_rows(tape_.rows.state_after(s)); }
  MatrixRows<T> h_before(ptrdiff_t s) const { return top_rows(tape_.rows.state_before(s)); }
  void final_states(T* h_n, T* c_n) const;  // (L, N, H)

  // dh_n, dc_n (L, N, H) of the final states; null: 0.
  void begin_backward(const T* dh_n, const T* dc_n);
  // From the last step to the first. dh (active(s), H): the gradient of h(s) from outside the LSTM, complete
  // on entry; null: 0. dx (active(s), I), dx_row apart, is assigned from the columns ahead on; null: not
  // wanted. Ends with a barrier.
  void backward_share(Team& team, ptrdiff_t s, MatrixRows<T> dh, T* dx, ptrdiff_t dx_row);
  // After the last of these. dx (P, I): the columns ahead are assigned.
  void input_ahead_gradients_share(Team& team, T* dx, ptrdiff_t dx_row) const;
  // parameters (flat) += from x (P, I), all packed rows.
  void weight_gradients_share(Team& team, MatrixRows<T> x, T* parameters);
  void initial_gradients(T* dh0, T* dc0) const;  // (L, N, H), assigned

 private:
  // What one thread does of a step: some sequences, or some hidden units of all of them.
  struct Part {
    bool by_sequences;
    Slots slots;
    Share units;
  };
  Part part_of(const Team& team, ptrdiff_t grain) const;
  LayerTape<T>& tape_of(ptrdiff_t layer) { return tape_.layers[static_cast<size_t>(layer)]; }
  const LayerTape<T>& tape_of(ptrdiff_t layer) const { return tape_.layers[static_cast<size_t>(layer)]; }
  const PackedLayer<T>& packed(ptrdiff_t layer) const { return w_.layers[static_cast<size_t>(layer)]; }
  MatrixRows<T> top_rows(ptrdiff_t row) const {
    return {tape_.layers.back().h.data() + row * tape_.state_pitch(), tape_.state_pitch()};
  }
  ptrdiff_t ahead(ptrdiff_t layer) const { return layer == 0 ? ahead_ : 0; }
  bool bf16() const { return w_.compute == Compute::kBfloat16; }
  ptrdiff_t low_gates_pitch() const { return low_pitch(4 * tape_.shape.hidden_padded()); }
  void input_share(Team& team, const Part& part, ptrdiff_t s, ptrdiff_t layer, MatrixRows<T> x);
  void low_input_share(Team& team, ptrdiff_t s, ptrdiff_t layer, MatrixRows<T> x);
  void low_product_share(Team& team, ptrdiff_t first, ptrdiff_t count, ptrdiff_t layer, const uint16_t* x,
                         ptrdiff_t x_pitch, ptrdiff_t begin, ptrdiff_t end);
  void low_weight_gradients_share(Team& team, ptrdiff_t layer, MatrixRows<T> x, T* parameters);
  void drop_share(Team& team, const Part& part, ptrdiff_t s, ptrdiff_t layer, const T* from,
                  ptrdiff_t from_row, T* to, ptrdiff_t to_row) const;

  const PackedWeights<T>& w_;
  const Kernels<T>& k_;
  ptrdiff_t ahead_;
  Tape<T> tape_;
  // Backward, by layer: of the states after the step at hand, (N, H_pad), and the sums of the bias.
  std::vector<Buffer<T>> dh_, dc_, bias_sums_;
  Buffer<T> dy_;  // (N, H_pad): what reaches the layer at hand from above
  ReductionOrder order_;
  std::vector<Buffer<T>> scratch_;  // by thread
  // bfloat16: h of each layer before and after a step, (N, H); the inputs of all steps of the first layer,
  // (P, I), and of one step of the others; the gates' derivatives of each layer, (P, 4 H_pad); and for the
  // weight gradients of one layer, all its h and its inputs.
  std::vector<LowRows> low_h_[2];
  LowRows low_x_, low_below_;
  std::vector<Buffer<uint16_t>> low_d_gates_;
  LowRows low_states_, low_inputs_;
  std::vector<Buffer<uint16_t>> low_scratch_;
};

}  // namespace fusedlstm
