// Backward through all layers and directions: reads the tape that forward wrote, writes gate derivatives over
// it. Step by step, last to first: gate derivatives dA, then dh_{t-1} = dA R. Then, once over all steps:
//
//   dX = dA W        dW += dA^T X        dR += dA^T H_{t-1}        db += sum dA
//
// The sums over rows go from the last step to the first, within a step by slot. dx is assigned, weight
// gradients added to.
#include <algorithm>

#include "lstm/lstm.h"
#include "lstm/split.h"
#include "lstm/weight_gradients.h"

namespace fusedlstm {
namespace {

// The order in which sums over rows are made, as indices of packed rows and of the states before them.
struct ReductionOrder {
  std::vector<int32_t> row, state_before;

  explicit ReductionOrder(const Rows& rows) {
    row.reserve(static_cast<size_t>(rows.total()));
    state_before.reserve(static_cast<size_t>(rows.total()));
    for (ptrdiff_t s = rows.steps() - 1; s >= 0; --s) {
      for (ptrdiff_t slot = 0; slot < rows.active(s); ++slot) {
        row.push_back(static_cast<int32_t>(rows.start(s) + slot));
        state_before.push_back(static_cast<int32_t>(rows.state_before(s) + slot));
      }
    }
  }
};

template <class T>
class Backward {
 public:
  Backward(const PackedWeights<T>& w, Tape<T>& tape, const T* dh_n, const T* dc_n,
           const LstmGradients<T>& gradients)
      : w_(w),
        tape_(tape),
        rows_(tape.rows),
        order_(tape.rows),
        offsets_(weight_offsets(tape.shape)),
        dh_n_(dh_n),
        dc_n_(dc_n),
        gradients_(gradients) {}

  // dy: per direction (P, H_pad), rows in that direction's order of steps, or null. Returns dX of the same
  // kind.
  void layer(ptrdiff_t layer, ptrdiff_t direction, MatrixRows<T> dy, T* dX, const Poll& poll) {
    const LstmShape& shape = tape_.shape;
    const Kernels<T>& k = w_.kernels();
    const ptrdiff_t N = rows_.batch(), P = rows_.total(), H = shape.hidden_size,
                    H_pad = shape.hidden_padded();
    const ptrdiff_t inputs = shape.layer_inputs(layer), gates_pitch = tape_.gates_pitch();
    const ptrdiff_t pitch = tape_.state_pitch();
    const ptrdiff_t index = layer * shape.directions() + direction;
    const WeightOffsets& offset = offsets_[static_cast<size_t>(index)];
    const PackedLayer<T>& packed = w_.layers[static_cast<size_t>(index)];
    LayerTape<T>& own = tape_.layers[static_cast<size_t>(index)];
    const bool tokens = layer == 0 && tape_.token_input;

    Buffer<T> dh = final_states(dh_n_, index), dc = final_states(dc_n_, index);
    const ptrdiff_t distinct = static_cast<ptrdiff_t>(tape_.tokens.distinct.size());
    Buffer<T> d_table = Buffer<T>::zeros(tokens ? distinct * gates_pitch : 0);
    Buffer<T> d_embedded(tokens && gradients_.d_embedding ? distinct * inputs : 0);
    const ptrdiff_t scratch_size = transposed_scratch(std::max(inputs, H), k.panel);
    std::vector<Buffer<T>> scratch;
    const int threads = layer_threads(N, P, H, inputs) == 1 ? 1 : num_threads();
    for (int t = 0; t < threads; ++t) scratch.emplace_back(scratch_size);

    run_job(threads, poll, [&](Team& team) {
      steps(team, own, packed, dy, dh.data(), dc.data());
      team.barrier();
      const T* const dA = own.gates.data();
      T* const mine = scratch[static_cast<size_t>(team.thread())].data();
      const WeightGradients<T> weights{k, H, H_pad, dA, gates_pitch};
      weights.product_share(team, P, order_.row.data(), own.h.data(), pitch, order_.state_before.data(), H,
                            gradients_.parameters + offset.weight_hh, mine);
      team.poll();
      if (shape.bias)
        weights.bias_share(team, P, order_.row.data(), gradients_.parameters + offset.bias_ih,
                           gradients_.parameters + offset.bias_hh);
      if (!tokens) {
        weights.product_share(team, P, order_.row.data(), own.x.data, own.x.pitch, order_.row.data(), inputs,
                              gradients_.parameters + offset.weight_ih, mine);
        team.poll();
        if (dX)
          gemm_share<T>(k,
                        {.M = P,
                         .N = inputs,
                         .K = 4 * H_pad,
                         .a = dA,
                         .a_row = gates_pitch,
                         .b = packed.input_backward.data(),
                         .init = nullptr,
                         .init_row = 0,
                         .c = dX,
                         .c_row = row_pitch<T>(inputs)},
                        team);
        return;
      }
      // Token input: first the derivative of the table row each token took, then two products over distinct
      // tokens.
      const Share columns = share_of(4 * H_pad, team.thread(), team.threads(), 16);
      const std::vector<int32_t>& slot = tape_.tokens.slot[static_cast<size_t>(direction)];
      for (const int32_t row : order_.row)
        k.add(columns.size(), dA + row * gates_pitch + columns.begin,
              d_table.data() + slot[static_cast<size_t>(row)] * gates_pitch + columns.begin);
      team.barrier();
      const WeightGradients<T> table_weights{k, H, H_pad, d_table.data(), gates_pitch};
      table_weights.product_share(team, distinct, nullptr, tape_.tokens.embedded.data(), row_pitch<T>(inputs),
                                  nullptr, inputs, gradients_.parameters + offset.weight_ih, mine);
      if (d_embedded.size())
        gemm_share<T>(k,
                      {.M = distinct,
                       .N = inputs,
                       .K = 4 * H_pad,
                       .a = d_table.data(),
                       .a_row = gates_pitch,
                       .b = packed.input_backward.data(),
                       .init = nullptr,
                       .init_row = 0,
                       .c = d_embedded.data(),
                       .c_row = inputs},
                      team);
    });
    for (ptrdiff_t u = 0; d_embedded.size() && u < distinct; ++u)
      k.add(inputs, d_embedded.data() + u * inputs,
            gradients_.d_embedding + tape_.tokens.distinct[static_cast<size_t>(u)] * inputs);
    for (ptrdiff_t slot = 0; slot < N; ++slot) {
      const ptrdiff_t to = (index * N + rows_.sequence(slot)) * H;
      std::copy(dh.data() + slot * pitch, dh.data() + slot * pitch + H, gradients_.dh0 + to);
      std::copy(dc.data() + slot * pitch, dc.data() + slot * pitch + H, gradients_.dc0 + to);
    }
  }

 private:
  // dh_n or dc_n of one layer and direction in the order of slots.
  Buffer<T> final_states(const T* states, ptrdiff_t index) const {
    const ptrdiff_t N = rows_.batch(), H = tape_.shape.hidden_size, pitch = tape_.state_pitch();
    Buffer<T> out = Buffer<T>::zeros(N * pitch);
    for (ptrdiff_t slot = 0; states && slot < N; ++slot) {
      const T* from = states + (index * N + rows_.sequence(slot)) * H;
      std::copy(from, from + H, out.data() + slot * pitch);
    }
    return out;
  }

  void steps(Team& team, LayerTape<T>& own, const PackedLayer<T>& packed, MatrixRows<T> dy, T* dh,
             T* dc) const {
    const Kernels<T>& k = w_.kernels();
    const ptrdiff_t H = tape_.shape.hidden_size, H_pad = tape_.shape.hidden_padded();
    const ptrdiff_t gates_pitch = tape_.gates_pitch(), pitch = tape_.state_pitch();
    const bool by_sequences = split_by_sequences(rows_.batch(), team.threads());
    const Slots slots = by_sequences ? Slots{team.thread(), team.threads()} : Slots{0, 1};
    const Share units =
        by_sequences ? Share{0, H_pad} : share_of(H_pad, team.thread(), team.threads(), k.panel);
    const ptrdiff_t slot = slots.first * pitch;
    for (ptrdiff_t s = rows_.steps() - 1; s >= 0; --s) {
      const ptrdiff_t M = slots.count(rows_.active(s)), first = rows_.start(s) + slots.first;
      k.cell_backward({.M = M,
                       .H_pad = H_pad,
                       .unit_begin = units.begin,
                       .unit_end = units.end,
                       .gates = own.gates.data() + first * gates_pitch,
                       .gates_row = slots.stride * gates_pitch,
                       .c_prev = own.c.data() + rows_.state_before(s) * pitch + slot,
                       .c = own.c.data() + rows_.state_after(s) * pitch + slot,
                       .c_row = slots.stride * pitch,
                       .dh = dh + slot,
                       .dc = dc + slot,
                       .d_row = slots.stride * pitch,
                       .dy = dy.data ? dy.row(first) : nullptr,
                       .dy_row = slots.stride * dy.pitch});
      if (by_sequences)
        team.poll();
      else
        team.barrier();
      const ptrdiff_t columns = std::min(units.end, H) - units.begin;
      if (M > 0 && columns > 0)
        k.gemm({.M = M,
                .N = columns,
                .K = 4 * H_pad,
                .a = own.gates.data() + first * gates_pitch,
                .a_row = slots.stride * gates_pitch,
                .b = packed.recurrent_backward.data() + units.begin * 4 * H_pad,
                .init = nullptr,
                .init_row = 0,
                .c = dh + slot + units.begin,
                .c_row = slots.stride * pitch});
    }
  }

  const PackedWeights<T>& w_;
  Tape<T>& tape_;
  const Rows& rows_;
  ReductionOrder order_;
  std::vector<WeightOffsets> offsets_;
  const T *dh_n_, *dc_n_;
  const LstmGradients<T>& gradients_;
};

// dy of the top layer, one direction: from the user's (N, T, D H) to that direction's order of steps.
template <class T>
void gather_dy(const Tape<T>& tape, const T* dy, ptrdiff_t direction, T* out) {
  const Rows& rows = tape.rows;
  const ptrdiff_t H = tape.shape.hidden_size, H_pad = tape.shape.hidden_padded(), D = tape.shape.directions();
  run_job(threads_for(static_cast<double>(rows.total() * tape.shape.outputs())), nullptr, [&](Team& team) {
    const Share steps = share_of(rows.steps(), team.thread(), team.threads());
    for (ptrdiff_t s = steps.begin; s < steps.end; ++s) {
      for (ptrdiff_t slot = 0; slot < rows.active(s); ++slot) {
        const T* from = dy + (rows.user_row(s, slot, direction) * D + direction) * H;
        T* to = out + (rows.start(s) + slot) * tape.state_pitch();
        std::copy(from, from + H, to);
        std::fill(to + H, to + H_pad, T(0));
      }
    }
  });
}

// dX of both directions of a layer (each in its own order of steps) summed, through the dropout mask, into dy
// of one direction of the layer below.
template <class T>
void pass_down(const Tape<T>& tape, const Kernels<T>& k, const std::vector<Buffer<T>>& dX, ptrdiff_t below,
               ptrdiff_t direction, T* out) {
  const Rows& rows = tape.rows;
  const ptrdiff_t H = tape.shape.hidden_size, H_pad = tape.shape.hidden_padded(), D = tape.shape.directions();
  const ptrdiff_t inputs = D * H, pitch = row_pitch<T>(inputs);
  run_job(threads_for(static_cast<double>(rows.total() * tape.shape.outputs())), nullptr, [&](Team& team) {
    Buffer<T> whole(inputs);
    const Share steps = share_of(rows.steps(), team.thread(), team.threads());
    for (ptrdiff_t s = steps.begin; s < steps.end; ++s) {
      for (ptrdiff_t slot = 0; slot < rows.active(s); ++slot) {
        const ptrdiff_t t = rows.time_of(s, slot, direction);
        for (ptrdiff_t above = 0; above < D; ++above) {
          const T* from = dX[static_cast<size_t>(above)].data() +
                          (rows.start(rows.time_of(t, slot, above)) + slot) * pitch;
          if (above == 0)
            std::copy(from, from + inputs, whole.data());
          else
            k.add(inputs, from, whole.data());
        }
        if (tape.dropout > 0)
          k.dropout_row(inputs, {tape.seed, static_cast<uint32_t>(below)},
                        static_cast<uint32_t>(rows.sequence(slot)), static_cast<uint32_t>(t), tape.dropout,
                        whole.data(), whole.data());
        T* to = out + (rows.start(s) + slot) * tape.state_pitch();
        std::copy(whole.data() + direction * H, whole.data() + (direction + 1) * H, to);
        std::fill(to + H, to + H_pad, T(0));
      }
    }
  });
}

// dX of layer 0 to the user's (N, T, I): both directions summed, 0 past a sequence's length.
template <class T>
void scatter_dx(const Tape<T>& tape, const Kernels<T>& k, const std::vector<Buffer<T>>& dX, T* dx) {
  const Rows& rows = tape.rows;
  const ptrdiff_t I = tape.shape.input_size, pitch = row_pitch<T>(I), D = tape.shape.directions();
  run_job(threads_for(static_cast<double>(rows.total() * tape.shape.outputs())), nullptr, [&](Team& team) {
    const Share slots = share_of(rows.batch(), team.thread(), team.threads());
    for (ptrdiff_t slot = slots.begin; slot < slots.end; ++slot) {
      T* to = dx + rows.sequence(slot) * rows.time() * I;
      for (ptrdiff_t t = 0; t < rows.length(slot); ++t, to += I) {
        const T* from = dX[0].data() + (rows.start(t) + slot) * pitch;
        std::copy(from, from + I, to);
        if (D == 2) k.add(I, dX[1].data() + (rows.start(rows.time_of(t, slot, 1)) + slot) * pitch, to);
      }
      std::fill(to, to + (rows.time() - rows.length(slot)) * I, T(0));
    }
  });
}

}  // namespace

template <class T>
void lstm_backward(const PackedWeights<T>& w, Tape<T>& tape, const T* dy, const T* dh_n, const T* dc_n,
                   const LstmGradients<T>& gradients, const Poll& poll) {
  tape.consumed = true;
  const LstmShape& shape = tape.shape;
  const Kernels<T>& k = w.kernels();
  const ptrdiff_t P = tape.rows.total(), D = shape.directions(), H = shape.hidden_size;
  const ptrdiff_t state_pitch = tape.state_pitch();
  Backward<T> backward(w, tape, dh_n, dc_n, gradients);
  std::vector<Buffer<T>> dX_above;
  for (ptrdiff_t layer = shape.num_layers - 1; layer >= 0; --layer) {
    const bool top = layer == shape.num_layers - 1;
    // One direction, no dropout: dX of the layer above is dy of this one as it stands.
    const bool same = !top && D == 1 && tape.dropout == 0 && H == shape.hidden_padded();
    const bool need_dx = layer > 0 || (gradients.dx && !tape.token_input);
    const ptrdiff_t dX_size = need_dx ? P * row_pitch<T>(shape.layer_inputs(layer)) : 0;
    std::vector<Buffer<T>> dX;
    for (ptrdiff_t direction = 0; direction < D; ++direction) {
      MatrixRows<T> dy_rows{nullptr, state_pitch};
      Buffer<T> gathered;
      if (same) {
        dy_rows.data = dX_above[0].data();
      } else if (!top || dy) {
        gathered = Buffer<T>(P * state_pitch);
        if (top)
          gather_dy(tape, dy, direction, gathered.data());
        else
          pass_down(tape, k, dX_above, layer, direction, gathered.data());
        dy_rows.data = gathered.data();
      }
      dX.emplace_back(dX_size);
      backward.layer(layer, direction, dy_rows, need_dx ? dX.back().data() : nullptr, poll);
    }
    dX_above = std::move(dX);
  }
  if (gradients.dx && !tape.token_input) scatter_dx(tape, k, dX_above, gradients.dx);
}

template void lstm_backward(const PackedWeights<float>&, Tape<float>&, const float*, const float*,
                            const float*, const LstmGradients<float>&, const Poll&);
template void lstm_backward(const PackedWeights<double>&, Tape<double>&, const double*, const double*,
                            const double*, const LstmGradients<double>&, const Poll&);

}  // namespace fusedlstm
