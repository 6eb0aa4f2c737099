#include "lstm/stepwise.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "lstm/step_work.h"

namespace fusedlstm {

template <class T>
Stepwise<T>::Stepwise(const PackedWeights<T>& w, const Rows& rows, const LstmStates<T>& initial, T dropout,
                      uint64_t seed, int threads, ptrdiff_t ahead)
    : w_(w),
      k_(w.kernels()),
      // With bfloat16 a sum can be left and gone on with between blocks of columns only.
      ahead_(w.compute == Compute::kBfloat16 && ahead < w.shape.input_size ? ahead / kLowBlock * kLowBlock
                                                                           : ahead),
      tape_{.shape = w.shape,
            .rows = rows,
            .mode = TapeMode::kFull,
            .chunks = Chunks(rows, rows.total()),
            .dropout = dropout,
            .seed = seed,
            .layers = {},
            .tokens = {}} {
  const ptrdiff_t N = rows.batch(), P = rows.total(), H = w.shape.hidden_size, pitch = tape_.state_pitch();
  tape_.layers.resize(static_cast<size_t>(w.shape.num_layers));
  for (ptrdiff_t layer = 0; layer < w.shape.num_layers; ++layer) {
    LayerTape<T>& own = tape_of(layer);
    own.gates = Buffer<T>(P * tape_.gates_pitch());
    own.h = Buffer<T>((N + P) * pitch);
    own.c = Buffer<T>((N + P) * pitch);
    states_by_slot(rows, {0, N, 1}, initial.h0 ? initial.h0 + layer * N * H : nullptr, H,
                   w.shape.hidden_padded(), pitch, own.h.data());
    states_by_slot(rows, {0, N, 1}, initial.c0 ? initial.c0 + layer * N * H : nullptr, H,
                   w.shape.hidden_padded(), pitch, own.c.data());
    if (layer == 0) continue;
    if (dropout > 0) own.copy = Buffer<T>(P * pitch);
    own.x = {dropout > 0 ? own.copy.data() : tape_of(layer - 1).h.data() + N * pitch, pitch};
  }
  const ptrdiff_t columns = std::max(w.shape.input_size, H);
  for (int t = 0; t < threads; ++t) {
    scratch_.emplace_back(w.backward && !bf16() ? transposed_scratch(columns, k_.panel, H) : 0);
    low_scratch_.emplace_back(w.backward && bf16() ? transposed_scratch_bf16(columns, H) : 0);
  }
  if (!bf16()) return;
  low_x_ = LowRows(w.compute, P, w.shape.input_size);
  low_below_ = LowRows(w.compute, dropout > 0 ? N : 0, H);
  for (std::vector<LowRows>& low_h : low_h_)
    for (ptrdiff_t layer = 0; layer < w.shape.num_layers; ++layer) low_h.emplace_back(w.compute, N, H);
  if constexpr (std::is_same_v<T, float>)
    for (ptrdiff_t layer = 0; layer < w.shape.num_layers; ++layer)
      low_h_[0][static_cast<size_t>(layer)].round(*w.level, 0, N, tape_of(layer).h.data(), pitch, true);
}

template <class T>
typename Stepwise<T>::Part Stepwise<T>::part_of(const Team& team, ptrdiff_t grain) const {
  const ptrdiff_t H_pad = tape_.shape.hidden_padded();
  if (split_by_sequences(tape_.rows.batch(), team.threads()))
    return {true, {team.thread(), team.threads()}, {0, H_pad}};
  return {false, {0, 1}, share_of(H_pad, team.thread(), team.threads(), grain)};
}

template <class T>
void Stepwise<T>::input_ahead_share(Team& team, MatrixRows<T> x) {
  const PackedLayer<T>& layer = packed(0);
  const Scope scope(Phase::kInput, 0, [&] {
    return product_work(tape_.rows.total(), 4 * tape_.shape.hidden_size, ahead_, operand_size<T>(w_.compute),
                        sizeof(T), team.threads());
  });
  if constexpr (std::is_same_v<T, float>) {
    if (bf16()) {
      const Share rows = share_of(tape_.rows.total(), team.thread(), team.threads());
      const bool all = ahead_ == layer.inputs;
      w_.level->bf16.round_rows(rows.size(), ahead_, all ? low_padded(ahead_) : ahead_, x.row(rows.begin),
                                x.pitch, low_x_.bf16.data() + rows.begin * low_x_.pitch, low_x_.pitch);
      team.barrier();
      low_product_share(team, 0, tape_.rows.total(), 0, low_x_.bf16.data(), low_x_.pitch, 0, ahead_);
      team.barrier();
      return;
    }
  }
  gemm_share<T>(k_,
                {.M = tape_.rows.total(),
                 .N = layer.bias.size(),
                 .K = ahead_,
                 .a = x.data,
                 .a_row = x.pitch,
                 .b = layer.input.data(),
                 .init = layer.bias.data(),
                 .init_row = 0,
                 .c = tape_of(0).gates.data(),
                 .c_row = tape_.gates_pitch(),
                 .b_panel = layer.inputs * k_.panel},
                team);
  team.barrier();
}

// Gates of `count` packed rows from `first` on = W x + b over the columns [begin, end) of x, the next of a
// sum.
template <class T>
void Stepwise<T>::low_product_share(Team& team, ptrdiff_t first, ptrdiff_t count, ptrdiff_t layer,
                                    const uint16_t* x, ptrdiff_t x_pitch, ptrdiff_t begin, ptrdiff_t end) {
  if constexpr (std::is_same_v<T, float>) {
    const PackedLayer<float>& weights = packed(layer);
    float* const gates = tape_of(layer).gates.data() + first * tape_.gates_pitch();
    if (begin < end)
      gemm_share(w_.level->bf16,
                 {.M = count,
                  .N = weights.bias.size(),
                  .K = end - begin,
                  .a = x + begin,
                  .a_row = x_pitch,
                  .b = weights.low_input.bf16.data() + begin * kLowPanel,
                  .b_panel = low_padded(weights.inputs) * kLowPanel,
                  .init = begin > 0 ? gates : weights.bias.data(),
                  .init_row = begin > 0 ? tape_.gates_pitch() : 0,
                  .c = gates,
                  .c_row = tape_.gates_pitch()},
                 team);
  }
}

// input_share with bfloat16: rounds what is new; waits for all threads.
template <class T>
void Stepwise<T>::low_input_share(Team& team, ptrdiff_t s, ptrdiff_t layer, MatrixRows<T> x) {
  if constexpr (std::is_same_v<T, float>) {
    const ptrdiff_t M = tape_.rows.active(s), from = ahead(layer), inputs = packed(layer).inputs;
    const Share rows = share_of(M, team.thread(), team.threads());
    LowRows& low = layer == 0          ? low_x_
                   : tape_.dropout > 0 ? low_below_
                                       : low_h_[(s + 1) % 2][static_cast<size_t>(layer - 1)];
    const ptrdiff_t first = layer == 0 ? tape_.rows.start(s) : 0;
    team.barrier();
    if (from < inputs && (layer == 0 || tape_.dropout > 0)) {
      w_.level->bf16.round_rows(rows.size(), inputs - from, low_padded(inputs) - from,
                                x.row(rows.begin) + from, x.pitch,
                                low.bf16.data() + (first + rows.begin) * low.pitch + from, low.pitch);
      team.barrier();
    }
    low_product_share(team, tape_.rows.start(s), M, layer, low.bf16.data() + first * low.pitch, low.pitch,
                      from, inputs);
    team.barrier();
  }
}

// The gates of step s of a layer = W x + b, on from the columns ahead; all a thread needs on return.
template <class T>
void Stepwise<T>::input_share(Team& team, const Part& part, ptrdiff_t s, ptrdiff_t layer, MatrixRows<T> x) {
  const PackedLayer<T>& weights = packed(layer);
  const ptrdiff_t M = tape_.rows.active(s), from = ahead(layer), gates_pitch = tape_.gates_pitch();
  T* const gates = tape_of(layer).gates.data() + tape_.rows.start(s) * gates_pitch;
  if (from == weights.inputs) return;
  Gemm<T> product{.M = M,
                  .N = weights.bias.size(),
                  .K = weights.inputs - from,
                  .a = x.data + from,
                  .a_row = x.pitch,
                  .b = weights.input.data() + from * k_.panel,
                  .init = from > 0 ? gates : weights.bias.data(),
                  .init_row = from > 0 ? gates_pitch : 0,
                  .c = gates,
                  .c_row = gates_pitch,
                  .b_panel = weights.inputs * k_.panel};
  if (!part.by_sequences) {
    gemm_share(k_, product, team);
    team.barrier();
    return;
  }
  product.M = part.slots.count(M);
  product.a += part.slots.first * product.a_row;
  product.init += part.slots.first * product.init_row;
  product.c += part.slots.first * product.c_row;
  for (ptrdiff_t* row : {&product.a_row, &product.init_row, &product.c_row}) *row *= part.slots.stride;
  gemm_in_pieces(k_, product, team);
}

// The dropout mask between a layer and the one below on rows of step s; where rows are not the thread's own,
// waits for the others before and after.
template <class T>
void Stepwise<T>::drop_share(Team& team, const Part& part, ptrdiff_t s, ptrdiff_t layer, const T* from,
                             ptrdiff_t from_row, T* to, ptrdiff_t to_row) const {
  if (!part.by_sequences) team.barrier();
  for (ptrdiff_t slot = team.thread(); slot < tape_.rows.active(s); slot += team.threads())
    k_.dropout_row(tape_.shape.hidden_size, {tape_.seed, static_cast<uint32_t>(layer - 1)},
                   static_cast<uint32_t>(tape_.rows.sequence(slot)), static_cast<uint32_t>(s), tape_.dropout,
                   from + slot * from_row, to + slot * to_row);
  if (!part.by_sequences) team.barrier();
}

template <class T>
void Stepwise<T>::forward_share(Team& team, ptrdiff_t s, MatrixRows<T> x) {
  const Rows& rows = tape_.rows;
  const Part part = part_of(team, bf16() ? kLowPanel : k_.lanes);
  const ptrdiff_t pitch = tape_.state_pitch(), gates_pitch = tape_.gates_pitch();
  const ptrdiff_t before = (rows.state_before(s) + part.slots.first) * pitch,
                  after = (rows.state_after(s) + part.slots.first) * pitch;
  for (ptrdiff_t layer = 0; layer < tape_.shape.num_layers; ++layer) {
    LayerTape<T>& own = tape_of(layer);
    if (layer > 0) {
      x = {own.x.row(rows.start(s)), own.x.pitch};
      if (tape_.dropout > 0)
        drop_share(team, part, s, layer, tape_of(layer - 1).h.data() + rows.state_after(s) * pitch, pitch,
                   own.copy.data() + rows.start(s) * pitch, pitch);
    }
    {
      const Scope scope(Phase::kInput, layer, [&] {
        return product_work(rows.active(s), 4 * tape_.shape.hidden_size, packed(layer).inputs - ahead(layer),
                            operand_size<T>(w_.compute), sizeof(T), team.threads());
      });
      if (bf16())
        low_input_share(team, s, layer, x);
      else
        input_share(team, part, s, layer, x);
    }
    T* const gates = own.gates.data() + (rows.start(s) + part.slots.first) * gates_pitch;
    CellForward<T> cell{.M = part.slots.count(rows.active(s)),
                        .H = tape_.shape.hidden_size,
                        .H_pad = tape_.shape.hidden_padded(),
                        .unit_begin = part.units.begin,
                        .unit_end = part.units.end,
                        .h_prev = own.h.data() + before,
                        .h_row = part.slots.stride * pitch,
                        .recurrent = packed(layer).recurrent.data(),
                        .input = gates,
                        .input_row = part.slots.stride * gates_pitch,
                        .gates = gates,
                        .gates_row = part.slots.stride * gates_pitch,
                        .c_prev = own.c.data() + before,
                        .c = own.c.data() + after,
                        .c_row = part.slots.stride * pitch,
                        .h = own.h.data() + after};
    {
      StepScope scope(layer, [&] { return step_work(cell, 0, w_.compute); });
      cell.ticks = scope.ticks();
      if (!bf16())
        k_.cell_forward(cell);
      else if constexpr (std::is_same_v<T, float>)
        low_cell_forward(
            *w_.level, packed(layer), cell, gates, cell.gates_row, low_h_[s % 2][static_cast<size_t>(layer)],
            low_h_[(s + 1) % 2][static_cast<size_t>(layer)], part.slots.first, part.slots.stride);
    }
    if (!part.by_sequences && layer + 1 < tape_.shape.num_layers) team.barrier();
  }
  team.barrier();
}

template <class T>
void Stepwise<T>::final_states(T* h_n, T* c_n) const {
  const ptrdiff_t N = tape_.rows.batch(), H = tape_.shape.hidden_size, pitch = tape_.state_pitch();
  for (ptrdiff_t layer = 0; layer < tape_.shape.num_layers; ++layer) {
    for (ptrdiff_t slot = 0; slot < N; ++slot) {
      const ptrdiff_t to = (layer * N + tape_.rows.sequence(slot)) * H;
      const ptrdiff_t from = tape_.rows.final_state(slot) * pitch;
      std::copy_n(tape_of(layer).h.data() + from, H, h_n + to);
      std::copy_n(tape_of(layer).c.data() + from, H, c_n + to);
    }
  }
}

template <class T>
void Stepwise<T>::begin_backward(const T* dh_n, const T* dc_n) {
  const ptrdiff_t N = tape_.rows.batch(), H = tape_.shape.hidden_size, H_pad = tape_.shape.hidden_padded(),
                  pitch = tape_.state_pitch();
  for (ptrdiff_t layer = 0; layer < tape_.shape.num_layers; ++layer) {
    for (auto [states, rows] : {std::pair{dh_n, &dh_}, std::pair{dc_n, &dc_}}) {
      rows->emplace_back(N * pitch);
      states_by_slot(tape_.rows, {0, N, 1}, states ? states + layer * N * H : nullptr, H, H_pad, pitch,
                     rows->back().data());
    }
    bias_sums_.push_back(Buffer<T>::zeros(4 * H_pad));
  }
  dy_ = Buffer<T>::zeros(N * pitch);
  const ptrdiff_t P = tape_.rows.total();
  for (ptrdiff_t layer = 0; bf16() && layer < tape_.shape.num_layers; ++layer)
    low_d_gates_.emplace_back(P * low_gates_pitch());
  if (bf16()) {
    low_states_ = LowRows(w_.compute, N + P, H);
    low_inputs_ = LowRows(w_.compute, P, H);
  }
  order_ = ReductionOrder(tape_.rows, 0, tape_.rows.steps());
}

template <class T>
void Stepwise<T>::backward_share(Team& team, ptrdiff_t s, MatrixRows<T> dh, T* dx, ptrdiff_t dx_row) {
  const Rows& rows = tape_.rows;
  const Part part = part_of(team, bf16() ? kLowPanel : k_.panel);
  const ptrdiff_t H = tape_.shape.hidden_size, H_pad = tape_.shape.hidden_padded(),
                  pitch = tape_.state_pitch(), gates_pitch = tape_.gates_pitch();
  const ptrdiff_t first = part.slots.first, stride = part.slots.stride, M = part.slots.count(rows.active(s)),
                  columns = std::max<ptrdiff_t>(std::min(part.units.end, H) - part.units.begin, 0);
  for (ptrdiff_t m = 0; dh.data && columns > 0 && m < M; ++m)
    std::copy_n(dh.row(first + m * stride) + part.units.begin, columns,
                dy_.data() + (first + m * stride) * pitch + part.units.begin);
  bool from_above = dh.data != nullptr;
  for (ptrdiff_t layer = tape_.shape.num_layers - 1; layer >= 0; --layer) {
    LayerTape<T>& own = tape_of(layer);
    T* const gates = own.gates.data() + (rows.start(s) + first) * gates_pitch;
    T* const dh_own = dh_[static_cast<size_t>(layer)].data() + first * pitch;
    uint16_t* low = nullptr;
    {
      const Scope scope(Phase::kGatesBackward, layer,
                        [&] { return gates_backward_work<T>(M * part.units.size()); });
      k_.cell_backward({.M = M,
                        .H_pad = H_pad,
                        .unit_begin = part.units.begin,
                        .unit_end = part.units.end,
                        .gates = gates,
                        .gates_row = stride * gates_pitch,
                        .c_prev = own.c.data() + (rows.state_before(s) + first) * pitch,
                        .c = own.c.data() + (rows.state_after(s) + first) * pitch,
                        .c_row = stride * pitch,
                        .dh = dh_own,
                        .dc = dc_[static_cast<size_t>(layer)].data() + first * pitch,
                        .d_row = stride * pitch,
                        .dy = from_above ? dy_.data() + first * pitch : nullptr,
                        .dy_row = stride * pitch});
      if constexpr (std::is_same_v<T, float>) {
        if (bf16())
          low = low_d_gates_[static_cast<size_t>(layer)].data() + (rows.start(s) + first) * low_gates_pitch();
        for (ptrdiff_t gate = 0; low && gate < 4; ++gate) {
          const ptrdiff_t at = gate * H_pad + part.units.begin;
          w_.level->bf16.round_rows(M, part.units.size(), part.units.size(), gates + at, stride * gates_pitch,
                                    low + at, stride * low_gates_pitch());
        }
      }
    }
    if (!part.by_sequences) team.barrier();
    // to (M, columns) = dA B: some columns of the product, which start at a whole panel
    const auto product = [&](Phase phase, const Buffer<T>& b, const LowMatrix& low_b, Share which, T* to,
                             ptrdiff_t to_row) {
      if (M <= 0 || which.size() <= 0) return;
      const Scope scope(phase, layer, [&] {
        return product_work(M, which.size(), 4 * H, operand_size<T>(w_.compute), sizeof(T));
      });
      if constexpr (std::is_same_v<T, float>) {
        if (low) {
          const ptrdiff_t panel = 4 * H_pad * kLowPanel;
          w_.level->bf16.gemm({.M = M,
                               .N = which.size(),
                               .K = 4 * H_pad,
                               .a = low,
                               .a_row = stride * low_gates_pitch(),
                               .b = low_b.bf16.data() + which.begin / kLowPanel * panel,
                               .b_panel = panel,
                               .init = nullptr,
                               .init_row = 0,
                               .c = to + which.begin,
                               .c_row = stride * to_row});
          team.poll();
          return;
        }
      }
      gemm_in_pieces<T>(k_,
                        {.M = M,
                         .N = which.size(),
                         .K = 4 * H_pad,
                         .a = gates,
                         .a_row = stride * gates_pitch,
                         .b = b.data() + which.begin * 4 * H_pad,
                         .init = nullptr,
                         .init_row = 0,
                         .c = to + which.begin,
                         .c_row = stride * to_row},
                        team);
    };
    const Share units{part.units.begin, part.units.begin + columns};
    const PackedLayer<T>& weights = packed(layer);
    product(Phase::kRecurrentBackward, weights.recurrent_backward, weights.low_recurrent_backward, units,
            dh_own, pitch);
    if (layer > 0) {
      product(Phase::kInputGradient, weights.input_backward, weights.low_input_backward, units,
              dy_.data() + first * pitch, pitch);
      if (tape_.dropout > 0) drop_share(team, part, s, layer, dy_.data(), pitch, dy_.data(), pitch);
      from_above = true;
    } else if (dx) {
      const ptrdiff_t panel = bf16() ? kLowPanel : ptrdiff_t{k_.panel}, begin = ahead_ / panel * panel;
      Share inputs{0, weights.inputs - begin};
      if (!part.by_sequences) inputs = share_of(inputs.end, team.thread(), team.threads(), panel);
      product(Phase::kInputGradient, weights.input_backward, weights.low_input_backward,
              {begin + inputs.begin, begin + inputs.end}, dx + first * dx_row, dx_row);
    }
  }
  team.barrier();
}

template <class T>
void Stepwise<T>::input_ahead_gradients_share(Team& team, T* dx, ptrdiff_t dx_row) const {
  const Scope scope(Phase::kInputGradient, 0, [&] {
    return product_work(tape_.rows.total(), ahead_, 4 * tape_.shape.hidden_size, operand_size<T>(w_.compute),
                        sizeof(T), team.threads());
  });
  if constexpr (std::is_same_v<T, float>) {
    if (bf16()) {
      gemm_share(w_.level->bf16,
                 {.M = tape_.rows.total(),
                  .N = ahead_,
                  .K = 4 * tape_.shape.hidden_padded(),
                  .a = low_d_gates_[0].data(),
                  .a_row = low_gates_pitch(),
                  .b = packed(0).low_input_backward.bf16.data(),
                  .b_panel = 4 * tape_.shape.hidden_padded() * kLowPanel,
                  .init = nullptr,
                  .init_row = 0,
                  .c = dx,
                  .c_row = dx_row},
                 team);
      return;
    }
  }
  gemm_share<T>(k_,
                {.M = tape_.rows.total(),
                 .N = ahead_,
                 .K = 4 * tape_.shape.hidden_padded(),
                 .a = tape_of(0).gates.data(),
                 .a_row = tape_.gates_pitch(),
                 .b = packed(0).input_backward.data(),
                 .init = nullptr,
                 .init_row = 0,
                 .c = dx,
                 .c_row = dx_row},
                team);
}

// dW and dR of one layer from operands rounded to bfloat16; those of the first layer's input already are.
template <class T>
void Stepwise<T>::low_weight_gradients_share(Team& team, ptrdiff_t layer, MatrixRows<T> x, T* parameters) {
  if constexpr (std::is_same_v<T, float>) {
    const ptrdiff_t H = tape_.shape.hidden_size, R = order_.rows(), P = tape_.rows.total();
    const LayerTape<T>& own = tape_of(layer);
    const WeightOffsets offset = weight_offsets(tape_.shape)[static_cast<size_t>(layer)];
    const WeightGradients<T> weights{k_, H, tape_.shape.hidden_padded(), own.gates.data(),
                                     tape_.gates_pitch()};
    uint16_t* const scratch = low_scratch_[static_cast<size_t>(team.thread())].data();
    const uint16_t* const dA = low_d_gates_[static_cast<size_t>(layer)].data();
    team.barrier();  // others may still be in the layer before
    low_states_.round_share(*w_.level, tape_.rows.batch() + P, own.h.data(), tape_.state_pitch(), true, team);
    if (layer > 0) low_inputs_.round_share(*w_.level, P, x.data, x.pitch, true, team);
    team.barrier();
    const LowRows& in = layer == 0 ? low_x_ : low_inputs_;
    const ptrdiff_t I = packed(layer).inputs;
    const int32_t* const row = order_.row.data();
    weights.product_share(w_.level->bf16, team, R, dA, low_gates_pitch(), row,
                          {H, low_states_.bf16.data(), low_states_.pitch, order_.state_before.data(),
                           parameters + offset.weight_hh, H},
                          {I, in.bf16.data(), in.pitch, row, parameters + offset.weight_ih, I}, scratch);
  }
}

template <class T>
void Stepwise<T>::weight_gradients_share(Team& team, MatrixRows<T> x, T* parameters) {
  const LstmShape& shape = tape_.shape;
  const ptrdiff_t H = shape.hidden_size, H_pad = shape.hidden_padded(), R = order_.rows();
  const std::vector<WeightOffsets> offsets = weight_offsets(shape);
  T* const scratch = scratch_[static_cast<size_t>(team.thread())].data();
  for (ptrdiff_t layer = 0; layer < shape.num_layers; ++layer) {
    const LayerTape<T>& own = tape_of(layer);
    const WeightOffsets& offset = offsets[static_cast<size_t>(layer)];
    const WeightGradients<T> weights{k_, H, H_pad, own.gates.data(), tape_.gates_pitch()};
    const MatrixRows<T> in = layer == 0 ? x : own.x;
    const Scope scope(Phase::kWeightGradient, layer, [&] {
      return product_work(4 * H, H + packed(layer).inputs, R, operand_size<T>(w_.compute), 2 * sizeof(T),
                          team.threads());
    });
    if (bf16()) {
      low_weight_gradients_share(team, layer, in, parameters);
    } else {
      const ptrdiff_t I = packed(layer).inputs;
      const int32_t* const row = order_.row.data();
      weights.product_share(team, R, row,
                            {H, own.h.data(), tape_.state_pitch(), order_.state_before.data(),
                             parameters + offset.weight_hh, H},
                            {I, in.data, in.pitch, row, parameters + offset.weight_ih, I}, scratch);
    }
    if (!shape.bias) continue;
    weights.bias_sums_share(team, R, order_.row.data(), bias_sums_[static_cast<size_t>(layer)].data());
    team.barrier();
    if (team.thread() == 0)
      add_bias_gradients(k_, H, H_pad, bias_sums_[static_cast<size_t>(layer)].data(),
                         parameters + offset.bias_ih, parameters + offset.bias_hh);
  }
  team.barrier();
}

template <class T>
void Stepwise<T>::initial_gradients(T* dh0, T* dc0) const {
  const ptrdiff_t N = tape_.rows.batch(), H = tape_.shape.hidden_size, pitch = tape_.state_pitch();
  for (size_t layer = 0; layer < dh_.size(); ++layer) {
    for (ptrdiff_t slot = 0; slot < N; ++slot) {
      const ptrdiff_t to = (static_cast<ptrdiff_t>(layer) * N + tape_.rows.sequence(slot)) * H;
      std::copy_n(dh_[layer].data() + slot * pitch, H, dh0 + to);
      std::copy_n(dc_[layer].data() + slot * pitch, H, dc0 + to);
    }
  }
}

template class Stepwise<float>;
template class Stepwise<double>;

}  // namespace fusedlstm
