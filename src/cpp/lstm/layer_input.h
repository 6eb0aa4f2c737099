// The input of one layer and direction, chunk by chunk of steps: its rows in that direction's order, and
// their products W x + b. Forward makes them; backward makes them again where the tape does not keep them.
#pragma once

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "lstm/low_precision.h"
#include "lstm/packing.h"
#include "lstm/split.h"
#include "lstm/tape.h"
#include "runtime/finite.h"
#include "runtime/products.h"
#include "runtime/profiler.h"

namespace fusedlstm {

// Rows come from the user's x, or from the layer below: both its directions side by side, with dropout.
template <class T>
class LayerInput {
 public:
  // x: the user's (N, T, I), needed for layer 0 where the tape has no rows of its own. not_finite: see
  // LstmInput.
  LayerInput(const PackedWeights<T>& w, const Tape<T>& tape, ptrdiff_t layer, ptrdiff_t direction,
             const T* x = nullptr, std::atomic<bool>* not_finite = nullptr)
      : w_(w),
        kernels_(w.kernels()),
        packed_(w.layers[static_cast<size_t>(layer * tape.shape.directions() + direction)]),
        tape_(tape),
        kept_(tape.layers[static_cast<size_t>(layer * tape.shape.directions() + direction)].x),
        layer_(layer),
        direction_(direction),
        x_(x),
        not_finite_(layer == 0 && direction == 0 ? not_finite : nullptr) {
    if (by_token())
      table_ = Buffer<T>(distinct() * tape.gates_pitch());
    else if (!kept_.data)
      gathered_ = Buffer<T>(tape.chunks.most_rows() * row_pitch<T>(packed_.inputs));
    if (w.compute != Compute::kFull)
      low_ = LowRows(w.compute, by_token() ? distinct() : tape.chunks.most_rows(), packed_.inputs);
  }

  bool by_token() const { return layer_ == 0 && tape_.token_input; }
  ptrdiff_t distinct() const { return static_cast<ptrdiff_t>(tape_.tokens.distinct.size()); }

  // Token input: W x + b of every token that occurs, once. A barrier must follow.
  void make_table_share(Team& team) {
    product_share(team, low_, embedded(), distinct(), table_.data(), tape_.gates_pitch());
  }

  // Input rows of the steps [begin, end). Where they are not kept and not a thread's own, a barrier must
  // follow.
  bool gathers() const { return gathered_.size() > 0; }
  void gather_share(const Team& team, ptrdiff_t begin, ptrdiff_t end) {
    if (gathers()) copy_share(team, begin, end, gathered_.data());
  }
  MatrixRows<T> rows(ptrdiff_t begin) const {
    if (gathers()) return {gathered_.data(), row_pitch<T>(packed_.inputs)};
    return {kept_.row(tape_.rows.start(begin)), kept_.pitch};
  }
  void copy_share(const Team& team, ptrdiff_t begin, ptrdiff_t end, T* to) const {
    const Rows& rows = tape_.rows;
    const ThreadRows mine = thread_rows(rows, begin, end, team);
    const Scope scope(Phase::kCopy, layer_,
                      [&] { return elements_work(mine.size() * packed_.inputs, 0, 2 * sizeof(T)); });
    const ptrdiff_t first = rows.start(begin);
    ptrdiff_t s = begin;
    for (ptrdiff_t r = mine.first; r < mine.end; r += mine.stride) {
      while (rows.start(s + 1) - first <= r) ++s;
      copy_row(s, first + r - rows.start(s), to + r * row_pitch<T>(packed_.inputs));
    }
  }

  // gates (rows, 4, H_pad) = W x + b of the steps [begin, end), after the barriers that those above ask for.
  void products_share(Team& team, ptrdiff_t begin, ptrdiff_t end, T* gates) {
    const ptrdiff_t first = tape_.rows.start(begin), count = tape_.rows.start(end) - first;
    const ptrdiff_t columns = packed_.bias.size(), pitch = tape_.gates_pitch();
    const ThreadRows mine = thread_rows(tape_.rows, begin, end, team);
    if (by_token()) {
      const std::vector<int32_t>& token = tape_.tokens.slot[static_cast<size_t>(direction_)];
      const Scope scope(Phase::kInput, layer_,
                        [&] { return elements_work(mine.size() * columns, 0, 2 * sizeof(T)); });
      for (ptrdiff_t r = mine.first; r < mine.end; r += mine.stride) {
        const T* from = table_.data() + token[static_cast<size_t>(first + r)] * pitch;
        std::copy(from, from + columns, gates + r * pitch);
      }
      return;
    }
    const MatrixRows<T> x = rows(begin);
    if (not_finite_) check(x, mine);
    if (!mine.own) return product_share(team, low_, x, count, gates, pitch);
    Team alone = team.alone();
    LowRows low;
    if (w_.compute != Compute::kFull) low = LowRows(w_.compute, mine.size(), packed_.inputs);
    product_share(alone, low, {x.row(mine.first), mine.stride * x.pitch}, mine.size(),
                  gates + mine.first * pitch, mine.stride * pitch);
  }

  // `count` of these rows, or of those of the embedding, in low precision; waits for all threads.
  const LowRows& rounded(Team& team, MatrixRows<T> x, ptrdiff_t count) { return round(team, low_, x, count); }
  MatrixRows<T> embedded() const { return {tape_.tokens.embedded.data(), row_pitch<T>(packed_.inputs)}; }

 private:
  const LowRows& round(Team& team, LowRows& low, MatrixRows<T> x, ptrdiff_t count) const {
    if constexpr (std::is_same_v<T, float>)
      low.round_share(*w_.level, count, x.data, x.pitch, layer_ > 0, team);
    team.barrier();
    return low;
  }

  // to (count, 4, H_pad) = W x + b; `low` takes x in low precision.
  void product_share(Team& team, LowRows& low, MatrixRows<T> x, ptrdiff_t count, T* to,
                     ptrdiff_t to_row) const {
    const Scope scope(Phase::kInput, layer_, [&] {
      return product_work(count, 4 * tape_.shape.hidden_size, packed_.inputs, operand_size<T>(w_.compute),
                          sizeof(T), team.threads());
    });
    if constexpr (std::is_same_v<T, float>) {
      if (w_.compute != Compute::kFull) {
        low_input_share(*w_.level, packed_, round(team, low, x, count), count, layer_ > 0, to, to_row, team);
        return;
      }
    }
    gemm_share<T>(kernels_,
                  {.M = count,
                   .N = packed_.bias.size(),
                   .K = packed_.inputs,
                   .a = x.data,
                   .a_row = x.pitch,
                   .b = packed_.input.data(),
                   .init = packed_.bias.data(),
                   .init_row = 0,
                   .c = to,
                   .c_row = to_row},
                  team);
  }

  // The product reads these rows next.
  void check(MatrixRows<T> x, const RowSet& mine) const {
    const Scope scope(Phase::kCopy, layer_,
                      [&] { return elements_work(mine.size() * packed_.inputs, 0, sizeof(T)); });
    for (ptrdiff_t r = mine.first; r < mine.end; r += mine.stride)
      if (!all_finite(x.row(r), packed_.inputs)) not_finite_->store(true, std::memory_order_relaxed);
  }

  void copy_row(ptrdiff_t s, ptrdiff_t slot, T* to) const {
    const Rows& rows = tape_.rows;
    if (layer_ == 0) {
      const T* from = x_ + rows.user_row(s, slot, direction_) * packed_.inputs;
      std::copy(from, from + packed_.inputs, to);
      return;
    }
    const ptrdiff_t H = tape_.shape.hidden_size, D = tape_.shape.directions(),
                    t = rows.time_of(s, slot, direction_);
    for (ptrdiff_t below = 0; below < D; ++below) {
      const ptrdiff_t step = rows.time_of(t, slot, below);  // its own inverse
      const T* from = tape_.layers[static_cast<size_t>((layer_ - 1) * D + below)].h.data() +
                      (rows.state_after(step) + slot) * tape_.state_pitch();
      std::copy(from, from + H, to + below * H);
    }
    if (tape_.dropout > 0)
      kernels_.dropout_row(D * H, {tape_.seed, static_cast<uint32_t>(layer_ - 1)},
                           static_cast<uint32_t>(rows.sequence(slot)), static_cast<uint32_t>(t),
                           tape_.dropout, to, to);
  }

  const PackedWeights<T>& w_;
  const Kernels<T>& kernels_;
  const PackedLayer<T>& packed_;
  const Tape<T>& tape_;
  const MatrixRows<T>& kept_;
  ptrdiff_t layer_, direction_;
  const T* x_;
  std::atomic<bool>* not_finite_;
  Buffer<T> table_;     // token input: (distinct, 4 H_pad), gates_pitch apart
  Buffer<T> gathered_;  // rows of one chunk, where no others have them
  LowRows low_;         // low precision: the rows of one chunk, or of the embedding
};

}  // namespace fusedlstm
