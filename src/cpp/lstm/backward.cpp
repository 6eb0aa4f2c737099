// Backward through all layers and directions, chunk by chunk of steps, last to first. The gates of a chunk
// come from the tape, and their derivatives dA are written over them:
//
//   step by step, last to first: dA, then dh_{t-1} = dA R. Then over the whole chunk:
//   dX = dA W        dW += dA^T X        dR += dA^T H_{t-1}        db += sum dA
//
// The sums over rows go from the last step to the first, within a step by slot. dx is assigned, weight
// gradients added to.
#include <algorithm>
#include <type_traits>

#include "lstm/layer_input.h"
#include "lstm/low_precision.h"
#include "lstm/lstm.h"
#include "lstm/split.h"
#include "lstm/step_work.h"
#include "lstm/weight_gradients.h"

namespace fusedlstm {
namespace {

// Gates and c of a chunk, from its first row on, in the layouts of the tape.
template <class T>
struct ChunkTape {
  const Rows& rows;
  ptrdiff_t begin, end;
  T* gates;           // becomes dA
  const T* c;         // the states before step `begin`
  ptrdiff_t c_after;  // rows of c from those to the states after it

  ptrdiff_t row(ptrdiff_t s) const { return rows.start(s) - rows.start(begin); }
  ptrdiff_t c_row_after(ptrdiff_t s) const { return c_after + row(s); }
  ptrdiff_t c_row_before(ptrdiff_t s) const { return s == begin ? 0 : c_row_after(s - 1); }
};

// The derivatives of a layer's h, or null: rows (P, H_pad) in the order of steps, or the user's
// (N, T, D H), of which each step takes its rows when it comes.
template <class T>
struct OutputGradient {
  MatrixRows<T> rows;
  const T* user = nullptr;
};

// Where those of its input go, or null: to rows (P, inputs) in the order of steps, or after each chunk to the
// user's (N, T, I), to which the second direction adds.
template <class T>
struct InputGradient {
  T* rows = nullptr;
  T* user = nullptr;
};

// One layer and direction.
template <class T>
class LayerBackward {
 public:
  LayerBackward(const PackedWeights<T>& w, Tape<T>& tape, ptrdiff_t layer, ptrdiff_t direction, int threads)
      : w_(w),
        tape_(tape),
        layer_(layer),
        rows_(tape.rows),
        k_(w.kernels()),
        shape_(tape.shape),
        direction_(direction),
        index_(layer * shape_.directions() + direction),
        packed_(w.layers[static_cast<size_t>(index_)]),
        own_(tape.layers[static_cast<size_t>(index_)]),
        offset_(weight_offsets(shape_)[static_cast<size_t>(index_)]),
        H_pad_(shape_.hidden_padded()),
        gates_pitch_(tape.gates_pitch()),
        pitch_(tape.state_pitch()),
        input_(w, tape, layer, direction),
        bias_sums_(Buffer<T>::zeros(4 * H_pad_)),
        gates_(tape.mode == TapeMode::kFull ? 0 : tape.chunks.most_rows() * gates_pitch_),
        c_(tape.mode == TapeMode::kLean ? (rows_.batch() + tape.chunks.most_rows()) * pitch_ : 0) {
    const ptrdiff_t distinct = static_cast<ptrdiff_t>(tape.tokens.distinct.size());
    if (input_.by_token()) d_table_ = Buffer<T>::zeros(distinct * gates_pitch_);
    const ptrdiff_t inputs = packed_.inputs;
    for (int t = 0; t < threads; ++t) {
      scratch_.emplace_back(bf16() ? 0 : transposed_scratch(inputs, k_.panel, shape_.hidden_size));
      scratch16_.emplace_back(bf16() ? transposed_scratch_bf16(inputs, shape_.hidden_size) : 0);
    }
    if (!bf16()) return;
    dA16_ = Buffer<uint16_t>(std::max(tape.chunks.most_rows(), distinct) * dA16_pitch());
    h16_ = Buffer<uint16_t>((rows_.batch() + tape.chunks.most_rows()) * h16_pitch());
  }

  // dh_n, dc_n: (L D, N, H), or null.
  void run(const LstmGradients<T>& gradients, const OutputGradient<T>& dy, const T* dh_n, const T* dc_n,
           const InputGradient<T>& dX, const Poll& poll) {
    const ptrdiff_t distinct = static_cast<ptrdiff_t>(tape_.tokens.distinct.size());
    Buffer<T> d_embedded(input_.by_token() && gradients.d_embedding ? distinct * packed_.inputs : 0);
    if (dy.user) step_dy_ = Buffer<T>(rows_.batch() * pitch_);
    dh_ = Buffer<T>(rows_.batch() * pitch_);
    dc_ = Buffer<T>(rows_.batch() * pitch_);
    if (dX.user) chunk_dX_ = Buffer<T>(tape_.chunks.most_rows() * row_pitch<T>(packed_.inputs));
    std::vector<ReductionOrder> orders;
    for (ptrdiff_t chunk = 0; chunk < tape_.chunks.count(); ++chunk)
      orders.emplace_back(rows_, tape_.chunks.begin(chunk), tape_.chunks.end(chunk));
    run_job(static_cast<int>(scratch_.size()), poll, [&](Team& team) {
      if (tape_.mode == TapeMode::kLean && input_.by_token()) input_.make_table_share(team);
      const RowSet slots = thread_slots(rows_, team);
      set_states(slots, dh_n, dc_n);
      if (!split_by_sequences(rows_.batch(), team.threads())) team.barrier();
      for (ptrdiff_t chunk = tape_.chunks.count() - 1; chunk >= 0; --chunk) {
        const ChunkTape<T> here = restore(team, chunk);
        steps(team, here, dy);
        team.barrier();
        products(team, here, orders[static_cast<size_t>(chunk)], gradients.parameters, dX);
        if (tape_.mode != TapeMode::kFull || bf16()) team.barrier();  // the next chunk takes the same buffers
      }
      write_states(slots, gradients);
      if (dX.user && direction_ == 0) write_padding(slots, dX.user);
      if (!input_.by_token()) return;
      team.barrier();
      if constexpr (std::is_same_v<T, float>)
        if (bf16())
          round_rows_share(w_.level->bf16, distinct, 4 * H_pad_, d_table_.data(), gates_pitch_, dA16_.data(),
                           dA16_pitch(), team);
      input_weight_gradient_share(team, distinct, nullptr, d_table_.data(), input_.embedded(),
                                  gradients.parameters);
      if (d_embedded.size())
        input_gradient_share(team, distinct, d_table_.data(), d_embedded.data(), packed_.inputs);
    });
    if (shape_.bias)
      add_bias_gradients(k_, shape_.hidden_size, H_pad_, bias_sums_.data(),
                         gradients.parameters + offset_.bias_ih, gradients.parameters + offset_.bias_hh);
    for (ptrdiff_t u = 0; d_embedded.size() && u < distinct; ++u)
      k_.add(packed_.inputs, d_embedded.data() + u * packed_.inputs,
             gradients.d_embedding + tape_.tokens.distinct[static_cast<size_t>(u)] * packed_.inputs);
  }

 private:
  bool bf16() const { return w_.compute == Compute::kBfloat16; }
  ptrdiff_t dA16_pitch() const { return low_pitch(4 * H_pad_); }
  ptrdiff_t h16_pitch() const { return low_pitch(shape_.hidden_size); }
  T* scratch(const Team& team) { return scratch_[static_cast<size_t>(team.thread())].data(); }
  uint16_t* scratch16(const Team& team) { return scratch16_[static_cast<size_t>(team.thread())].data(); }

  // dh and dc begin as those of the final states, and become those of the initial ones.
  void set_states(const RowSet& slots, const T* dh_n, const T* dc_n) {
    const ptrdiff_t H = shape_.hidden_size, at = index_ * rows_.batch() * H;
    states_by_slot(rows_, slots, dh_n ? dh_n + at : nullptr, H, H_pad_, pitch_, dh_.data());
    states_by_slot(rows_, slots, dc_n ? dc_n + at : nullptr, H, H_pad_, pitch_, dc_.data());
    if (!step_dy_.size()) return;
    for (ptrdiff_t slot = slots.first; slot < slots.end; slot += slots.stride)
      std::fill_n(step_dy_.data() + slot * pitch_, H_pad_, T(0));
  }
  void write_states(const RowSet& slots, const LstmGradients<T>& gradients) const {
    const ptrdiff_t H = shape_.hidden_size;
    for (ptrdiff_t slot = slots.first; slot < slots.end; slot += slots.stride) {
      const ptrdiff_t to = (index_ * rows_.batch() + rows_.sequence(slot)) * H;
      std::copy_n(dh_.data() + slot * pitch_, H, gradients.dh0 + to);
      std::copy_n(dc_.data() + slot * pitch_, H, gradients.dc0 + to);
    }
  }
  // dx is 0 past a sequence's length.
  void write_padding(const RowSet& slots, T* dx) const {
    const ptrdiff_t I = packed_.inputs, time = rows_.time();
    for (ptrdiff_t slot = slots.first; slot < slots.end; slot += slots.stride) {
      T* const sequence = dx + rows_.sequence(slot) * time * I;
      std::fill(sequence + rows_.length(slot) * I, sequence + time * I, T(0));
    }
  }

  // The h before every row of a chunk, in bfloat16; waits for all threads.
  void round_states(Team& team, ptrdiff_t begin, ptrdiff_t end) {
    const ptrdiff_t first = rows_.state_before(begin);
    if constexpr (std::is_same_v<T, float>)
      round_rows_share(w_.level->bf16, rows_.state_before(end - 1) + rows_.active(end - 1) - first,
                       shape_.hidden_size, own_.h.data() + first * pitch_, pitch_, h16_.data(), h16_pitch(),
                       team);
    team.barrier();
  }

  // The gates and c of a chunk, as forward left them or made again.
  ChunkTape<T> restore(Team& team, ptrdiff_t chunk) {
    const ptrdiff_t begin = tape_.chunks.begin(chunk), end = tape_.chunks.end(chunk);
    const ptrdiff_t first = rows_.start(begin);
    ChunkTape<T> here{rows_,
                      begin,
                      end,
                      own_.gates.data() + first * gates_pitch_,
                      own_.c.data() + rows_.state_before(begin) * pitch_,
                      rows_.state_after(begin) - rows_.state_before(begin)};
    if (tape_.mode == TapeMode::kFull) return here;
    here.gates = gates_.data();
    input_.gather_share(team, begin, end);
    if (tape_.mode == TapeMode::kHalf) {
      const ThreadRows mine = thread_rows(rows_, begin, end, team);
      const Scope scope(Phase::kCopy, layer_,
                        [&] { return elements_work(mine.size() * 4 * H_pad_, 1, sizeof(T) + 2); });
      for (ptrdiff_t r = mine.first; r < mine.end; r += mine.stride)
        k_.widen_gates(H_pad_, own_.gates16.data() + (first + r) * 4 * H_pad_, here.gates + r * gates_pitch_);
      if (!mine.own) team.barrier();
      return here;
    }
    here.c = c_.data();
    here.c_after = rows_.active(begin);
    team.barrier();
    input_.products_share(team, begin, end, here.gates);
    const ptrdiff_t saved = here.c_after * pitch_;
    if (team.thread() == 0)
      std::copy(own_.c_chunks.data() + tape_.chunks.state(chunk) * pitch_,
                own_.c_chunks.data() + tape_.chunks.state(chunk) * pitch_ + saved, c_.data());
    team.barrier();
    make_gates_share(team, here);
    team.barrier();
    return here;
  }

  // All h are known, so the recurrent products of all steps with the same active slots are one.
  void make_gates_share(Team& team, const ChunkTape<T>& here) {
    StepScope scope(layer_, [&] {
      const ptrdiff_t rows = here.row(here.end), H = shape_.hidden_size, threads = team.threads();
      const Work product =
          product_work(rows, 4 * H, H, operand_size<T>(w_.compute), sizeof(T), team.threads());
      const double cells = static_cast<double>(rows * H) / static_cast<double>(threads);
      return StepWork{{}, product, {cells * kActivationFlops, cells * 4 * sizeof(T)}};
    });
    if (bf16()) round_states(team, here.begin, here.end);
    CellForward<T> cell{.H = shape_.hidden_size,
                        .H_pad = H_pad_,
                        .h_row = pitch_,
                        .recurrent = packed_.recurrent.data(),  // none with bfloat16
                        .input_row = gates_pitch_,
                        .gates_row = gates_pitch_,
                        .c_row = pitch_,
                        .ticks = scope.ticks()};
    for (ptrdiff_t s = here.begin, end; s < here.end; s = end) {
      end = s + 1;
      const ptrdiff_t offset = rows_.state_before(s) - rows_.start(s);
      while (end < here.end && rows_.state_before(end) - rows_.start(end) == offset) ++end;
      const Share share = share_of(here.row(end) - here.row(s), team.thread(), team.threads(), kTileRows);
      cell.M = share.size();
      cell.unit_begin = 0;
      cell.unit_end = H_pad_;
      cell.h_prev = own_.h.data() + (rows_.state_before(s) + share.begin) * pitch_;
      cell.gates = here.gates + (here.row(s) + share.begin) * gates_pitch_;
      cell.input = cell.gates;
      if constexpr (std::is_same_v<T, float>)
        if (bf16()) {
          PartTimer timer(cell.ticks);
          const GemmBf16 whole{
              .M = cell.M,
              .N = 4 * H_pad_,
              .K = cell.H,
              .a = h16_.data() +
                   (rows_.state_before(s) - rows_.state_before(here.begin) + share.begin) * h16_pitch(),
              .a_row = h16_pitch(),
              .b = packed_.low_recurrent.bf16.data(),
              .b_panel = bf16_layout(cell.H).panel,
              .init = cell.gates,
              .init_row = gates_pitch_,
              .c = cell.gates,
              .c_row = gates_pitch_};
          w_.level->bf16.gemm(gates_of_units(whole, bf16_layout(cell.H), H_pad_, 0, H_pad_));
          timer.end(&StepTicks::recurrent);
        }
      if (cell.M > 0) k_.cell_gates(cell);
      team.poll();
    }
    team.barrier();
    const Share units = share_of(H_pad_, team.thread(), team.threads(), k_.lanes);
    for (ptrdiff_t s = here.begin; s < here.end; ++s) {
      cell.M = rows_.active(s);
      cell.unit_begin = units.begin;
      cell.unit_end = units.end;
      cell.gates = here.gates + here.row(s) * gates_pitch_;
      cell.c_prev = c_.data() + here.c_row_before(s) * pitch_;
      cell.c = c_.data() + here.c_row_after(s) * pitch_;
      k_.cell_states(cell);
    }
  }

  // Of a step, to step_dy_: the rows and units that this thread is about to read.
  void gather_dy(const T* user, ptrdiff_t s, const Slots& slots, const Share& units) {
    const ptrdiff_t H = shape_.hidden_size, D = shape_.directions(), active = rows_.active(s);
    const ptrdiff_t begin = std::min(units.begin, H), count = std::min(units.end, H) - begin;
    const Scope scope(Phase::kCopy, layer_,
                      [&] { return elements_work(slots.count(active) * count, 0, 2 * sizeof(T)); });
    for (ptrdiff_t slot = slots.first; slot < active; slot += slots.stride) {
      const T* const from = user + (rows_.user_row(s, slot, direction_) * D + direction_) * H + begin;
      std::copy(from, from + count, step_dy_.data() + slot * pitch_ + begin);
    }
  }

  void steps(Team& team, const ChunkTape<T>& here, const OutputGradient<T>& dy) {
    const bool by_sequences = split_by_sequences(rows_.batch(), team.threads());
    const Slots slots = by_sequences ? Slots{team.thread(), team.threads()} : Slots{0, 1};
    const Share units = by_sequences
                            ? Share{0, H_pad_}
                            : share_of(H_pad_, team.thread(), team.threads(), bf16() ? kLowPanel : k_.panel);
    const ptrdiff_t slot = slots.first * pitch_;
    for (ptrdiff_t s = here.end - 1; s >= here.begin; --s) {
      const ptrdiff_t M = slots.count(rows_.active(s));
      T* const gates = here.gates + (here.row(s) + slots.first) * gates_pitch_;
      uint16_t* const dA16 = dA16_.data() + (here.row(s) + slots.first) * dA16_pitch();
      if (dy.user) gather_dy(dy.user, s, slots, units);
      const MatrixRows<T> step_dy =
          dy.user        ? MatrixRows<T>{step_dy_.data() + slot, pitch_}
          : dy.rows.data ? MatrixRows<T>{dy.rows.row(rows_.start(s) + slots.first), dy.rows.pitch}
                         : MatrixRows<T>{};
      {
        const Scope scope(Phase::kGatesBackward, layer_,
                          [&] { return gates_backward_work<T>(M * units.size()); });
        k_.cell_backward({.M = M,
                          .H_pad = H_pad_,
                          .unit_begin = units.begin,
                          .unit_end = units.end,
                          .gates = gates,
                          .gates_row = slots.stride * gates_pitch_,
                          .c_prev = here.c + here.c_row_before(s) * pitch_ + slot,
                          .c = here.c + here.c_row_after(s) * pitch_ + slot,
                          .c_row = slots.stride * pitch_,
                          .dh = dh_.data() + slot,
                          .dc = dc_.data() + slot,
                          .d_row = slots.stride * pitch_,
                          .dy = step_dy.data,
                          .dy_row = slots.stride * step_dy.pitch});
        if constexpr (std::is_same_v<T, float>)
          for (ptrdiff_t gate = 0; bf16() && gate < 4; ++gate) {
            const ptrdiff_t at = gate * H_pad_ + units.begin;
            w_.level->bf16.round_rows(M, units.size(), units.size(), gates + at, slots.stride * gates_pitch_,
                                      dA16 + at, slots.stride * dA16_pitch());
          }
      }
      if (by_sequences)
        team.poll();
      else
        team.barrier();
      const ptrdiff_t columns = std::min(units.end, shape_.hidden_size) - units.begin;
      if (M <= 0 || columns <= 0) continue;
      const Scope scope(Phase::kRecurrentBackward, layer_, [&] {
        return product_work(M, columns, 4 * shape_.hidden_size, operand_size<T>(w_.compute), sizeof(T));
      });
      if constexpr (std::is_same_v<T, float>) {
        if (bf16()) {
          const ptrdiff_t panel = 4 * H_pad_ * kLowPanel;
          w_.level->bf16.gemm(
              {.M = M,
               .N = columns,
               .K = 4 * H_pad_,
               .a = dA16,
               .a_row = slots.stride * dA16_pitch(),
               .b = packed_.low_recurrent_backward.bf16.data() + units.begin / kLowPanel * panel,
               .b_panel = panel,
               .init = nullptr,
               .init_row = 0,
               .c = dh_.data() + slot + units.begin,
               .c_row = slots.stride * pitch_});
          continue;
        }
      }
      k_.gemm({.M = M,
               .N = columns,
               .K = 4 * H_pad_,
               .a = gates,
               .a_row = slots.stride * gates_pitch_,
               .b = packed_.recurrent_backward.data() + units.begin * 4 * H_pad_,
               .init = nullptr,
               .init_row = 0,
               .c = dh_.data() + slot + units.begin,
               .c_row = slots.stride * pitch_,
               .descending = s % 2 != 0});
    }
  }

  // dX (R, inputs) = dA W, of the rows of dA from `first` on that lie `stride` apart
  void input_gradient_share(Team& team, ptrdiff_t R, const T* dA, T* dX, ptrdiff_t dX_row,
                            ptrdiff_t first = 0, ptrdiff_t stride = 1) const {
    const Scope scope(Phase::kInputGradient, layer_, [&] {
      return product_work(R, packed_.inputs, 4 * shape_.hidden_size, operand_size<T>(w_.compute), sizeof(T),
                          team.threads());
    });
    const auto fill = [&](auto product, const auto* a, ptrdiff_t a_row) {
      product.M = R;
      product.N = packed_.inputs;
      product.K = 4 * H_pad_;
      product.a = a + first * a_row;
      product.a_row = stride * a_row;
      product.c = dX + first * dX_row;
      product.c_row = stride * dX_row;
      return product;
    };
    if constexpr (std::is_same_v<T, float>) {
      if (bf16()) {
        const LowMatrix& weights = packed_.low_input_backward;
        gemm_share(w_.level->bf16,
                   fill(GemmBf16{.b = weights.bf16.data(), .b_panel = 4 * H_pad_ * kLowPanel}, dA16_.data(),
                        dA16_pitch()),
                   team);
        return;
      }
    }
    gemm_share<T>(k_, fill(Gemm<T>{.b = packed_.input_backward.data()}, dA, gates_pitch_), team);
  }

  // dW += dA^T X over R rows in the order given
  void input_weight_gradient_share(Team& team, ptrdiff_t R, const int32_t* order, const T* dA,
                                   MatrixRows<T> x, T* parameters) {
    const Scope scope(Phase::kWeightGradient, layer_,
                      [&] { return weight_gradient_work(R, packed_.inputs, team.threads()); });
    const WeightGradients<T> weights{k_, shape_.hidden_size, H_pad_, dA, gates_pitch_};
    if constexpr (std::is_same_v<T, float>) {
      if (bf16()) {
        weights.product_share(w_.level->bf16, team, R, dA16_.data(), dA16_pitch(), order,
                              low_input_side(team, x, R, order, parameters), {}, scratch16(team));
        return;
      }
    }
    weights.product_share(team, R, order, input_side(x, order, parameters), {}, scratch(team));
  }
  RightSide<T> input_side(MatrixRows<T> x, const int32_t* order, T* parameters) const {
    return {packed_.inputs, x.data, x.pitch, order, parameters + offset_.weight_ih, packed_.inputs};
  }

  RightSideOf<uint16_t, T> low_input_side(Team& team, MatrixRows<T> x, ptrdiff_t R, const int32_t* order,
                                          T* parameters) {
    const LowRows& x16 = input_.rounded(team, x, R);
    return {packed_.inputs, x16.bf16.data(), x16.pitch, order, parameters + offset_.weight_ih,
            packed_.inputs};
  }

  void products(Team& team, const ChunkTape<T>& here, const ReductionOrder& order, T* parameters,
                const InputGradient<T>& dX) {
    const ptrdiff_t H = shape_.hidden_size, R = order.rows(), first = rows_.start(here.begin);
    const WeightGradients<T> weights{k_, H, H_pad_, here.gates, gates_pitch_};
    const bool both = !input_.by_token();  // dW and dR at once
    const int32_t* const row = order.row.data();
    {
      const Scope scope(Phase::kWeightGradient, layer_, [&] {
        return weight_gradient_work(R, H + (both ? packed_.inputs : 0), team.threads());
      });
      T* const d_recurrent = parameters + offset_.weight_hh;
      if (!bf16()) {
        const RightSide<T> states{H,           own_.h.data() + rows_.state_before(here.begin) * pitch_,
                                  pitch_,      order.state_before.data(),
                                  d_recurrent, H};
        weights.product_share(team, R, row, states,
                              both ? input_side(input_.rows(here.begin), row, parameters) : RightSide<T>{},
                              scratch(team));
      } else if constexpr (std::is_same_v<T, float>) {
        round_states(team, here.begin, here.end);
        const RightSideBf16 states{H, h16_.data(), h16_pitch(), order.state_before.data(), d_recurrent, H};
        weights.product_share(
            w_.level->bf16, team, R, dA16_.data(), dA16_pitch(), row, states,
            both ? low_input_side(team, input_.rows(here.begin), R, row, parameters) : RightSideBf16{},
            scratch16(team));
      }
      if (shape_.bias) weights.bias_sums_share(team, R, row, bias_sums_.data());
    }
    if (!input_.by_token()) {
      if (!dX.rows && !dX.user) return;
      const ptrdiff_t pitch = row_pitch<T>(packed_.inputs);
      T* const to = dX.rows ? dX.rows + first * pitch : chunk_dX_.data();
      const ThreadRows mine = thread_rows(rows_, here.begin, here.end, team);
      if (mine.own) {
        Team alone = team.alone();
        input_gradient_share(alone, mine.size(), here.gates, to, pitch, mine.first, mine.stride);
      } else {
        input_gradient_share(team, R, here.gates, to, pitch);
        if (dX.user) team.barrier();
      }
      if (dX.user) scatter_dX_share(here, mine, dX.user);
      return;
    }
    // Token input: the derivative of the table row each token took. Products over distinct tokens follow at
    // the end.
    const Share columns = share_of(4 * H_pad_, team.thread(), team.threads(), 16);
    const Scope scope(Phase::kWeightGradient, layer_,
                      [&] { return elements_work(R * columns.size(), 1, 3 * sizeof(T)); });
    const std::vector<int32_t>& token = tape_.tokens.slot[static_cast<size_t>(direction_)];
    for (const int32_t at : order.row)
      k_.add(columns.size(), here.gates + at * gates_pitch_ + columns.begin,
             d_table_.data() + token[static_cast<size_t>(first + at)] * gates_pitch_ + columns.begin);
  }

  void scatter_dX_share(const ChunkTape<T>& here, const RowSet& mine, T* user) const {
    const ptrdiff_t I = packed_.inputs;
    const Scope scope(Phase::kCopy, layer_, [&] { return elements_work(mine.size() * I, 0, 2 * sizeof(T)); });
    ptrdiff_t s = here.begin;
    for (ptrdiff_t r = mine.first; r < mine.end; r += mine.stride) {
      while (here.row(s + 1) <= r) ++s;
      const T* const from = chunk_dX_.data() + r * row_pitch<T>(I);
      T* const to = user + rows_.user_row(s, r - here.row(s), direction_) * I;
      if (direction_ == 0)
        std::copy(from, from + I, to);
      else
        k_.add(I, from, to);
    }
  }

  Work weight_gradient_work(ptrdiff_t R, ptrdiff_t columns, int threads) const {
    return product_work(4 * shape_.hidden_size, columns, R, operand_size<T>(w_.compute), 2 * sizeof(T),
                        threads);
  }

  const PackedWeights<T>& w_;
  Tape<T>& tape_;
  ptrdiff_t layer_;
  const Rows& rows_;
  const Kernels<T>& k_;
  const LstmShape& shape_;
  ptrdiff_t direction_, index_;
  const PackedLayer<T>& packed_;
  LayerTape<T>& own_;
  WeightOffsets offset_;
  ptrdiff_t H_pad_, gates_pitch_, pitch_;
  LayerInput<T> input_;
  Buffer<T> bias_sums_;          // (4, H_pad)
  Buffer<T> gates_, c_;          // of a chunk, where the tape has them in another form
  Buffer<T> dh_, dc_, step_dy_;  // (N, H_pad)
  Buffer<T> chunk_dX_;           // (rows of a chunk, inputs)
  Buffer<T> d_table_;            // token input: (distinct, 4 H_pad), gates_pitch apart
  std::vector<Buffer<T>> scratch_;
  // bfloat16: the rows of dA of a chunk or of d_table_, and the h before them
  Buffer<uint16_t> dA16_, h16_;
  std::vector<Buffer<uint16_t>> scratch16_;
};

template <class T>
void layer_backward(const PackedWeights<T>& w, Tape<T>& tape, ptrdiff_t layer, ptrdiff_t direction,
                    const T* dh_n, const T* dc_n, const OutputGradient<T>& dy, const InputGradient<T>& dX,
                    const LstmGradients<T>& gradients, const Poll& poll) {
  const ptrdiff_t N = tape.rows.batch(), P = tape.rows.total(), H = tape.shape.hidden_size;
  const int threads = layer_threads(N, P, H, tape.shape.layer_inputs(layer)) == 1 ? 1 : num_threads();
  LayerBackward<T>(w, tape, layer, direction, threads).run(gradients, dy, dh_n, dc_n, dX, poll);
}

template <class T>
Work copy_work(const Rows& rows, Share steps, ptrdiff_t columns) {
  return elements_work((rows.start(steps.end) - rows.start(steps.begin)) * columns, 0, 2 * sizeof(T));
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
    const Scope scope(Phase::kCopy, below, [&] { return copy_work<T>(rows, steps, inputs); });
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

}  // namespace

template <class T>
void lstm_backward(const PackedWeights<T>& w, Tape<T>& tape, const T* dy, const T* dh_n, const T* dc_n,
                   const LstmGradients<T>& gradients, const Poll& poll) {
  const LstmShape& shape = tape.shape;
  const Kernels<T>& k = w.kernels();
  const ptrdiff_t P = tape.rows.total(), D = shape.directions(), H = shape.hidden_size;
  const ptrdiff_t state_pitch = tape.state_pitch();
  std::vector<Buffer<T>> dX_above;
  for (ptrdiff_t layer = shape.num_layers - 1; layer >= 0; --layer) {
    const bool top = layer == shape.num_layers - 1;
    // One direction, no dropout: dX of the layer above is dy of this one as it stands.
    const bool same = !top && D == 1 && tape.dropout == 0 && H == shape.hidden_padded();
    std::vector<Buffer<T>> dX;
    for (ptrdiff_t direction = 0; direction < D; ++direction) {
      OutputGradient<T> output;
      Buffer<T> passed_down;
      if (top) {
        output.user = dy;
      } else if (same) {
        output.rows = {dX_above[0].data(), state_pitch};
      } else {
        passed_down = Buffer<T>(P * state_pitch);
        pass_down(tape, k, dX_above, layer, direction, passed_down.data());
        output.rows = {passed_down.data(), state_pitch};
      }
      InputGradient<T> input;
      if (layer > 0)
        input.rows = dX.emplace_back(P * row_pitch<T>(shape.layer_inputs(layer))).data();
      else if (!tape.token_input)
        input.user = gradients.dx;
      layer_backward(w, tape, layer, direction, dh_n, dc_n, output, input, gradients, poll);
    }
    dX_above = std::move(dX);
  }
}

template void lstm_backward(const PackedWeights<float>&, Tape<float>&, const float*, const float*,
                            const float*, const LstmGradients<float>&, const Poll&);
template void lstm_backward(const PackedWeights<double>&, Tape<double>&, const double*, const double*,
                            const double*, const LstmGradients<double>&, const Poll&);

}  // namespace fusedlstm
