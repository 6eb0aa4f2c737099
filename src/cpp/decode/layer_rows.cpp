#include "decode/layer_rows.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "lstm/split.h"
#include "lstm/step_work.h"

namespace fusedlstm {

template <class T>
LayerRows<T>::LayerRows(const PackedWeights<T>& lstm, ptrdiff_t capacity, ptrdiff_t fed)
    : lstm_(lstm),
      L_(lstm.shape.num_layers),
      H_(lstm.shape.hidden_size),
      pitch_(row_pitch<T>(H_)),
      gates_pitch_(4 * lstm.shape.hidden_padded()),
      h_scale_(static_cast<size_t>(L_)),
      low_fed_(lstm.compute, low() ? capacity : 0, fed),
      gates_(capacity * gates_pitch_) {
  for (ptrdiff_t layer = 0; layer < L_; ++layer) {
    for (std::vector<Buffer<T>>* state : {&h_, &h_next_, &c_})
      state->push_back(Buffer<T>::zeros(capacity * pitch_));
    for (std::vector<LowRows>* state : {&low_h_, &low_h_next_})
      state->emplace_back(lstm.compute, low() ? capacity : 0, H_);
  }
}

// h of these rows also to low precision, where products take it so. int8 counts h in steps of 1/127 of
// [-1, 1]; initial states may lie beyond, and have a scale of their own until their first step.
template <class T>
void LayerRows<T>::round_rows(size_t layer, ptrdiff_t first, ptrdiff_t count) {
  if constexpr (std::is_same_v<T, float>) {
    if (!low()) return;
    const float* const rows = h_[layer].data() + first * pitch_;
    low_h_[layer].round(*lstm_.level, first, count, rows, pitch_, true);
    if (lstm_.compute != Compute::kInt8) return;
    Buffer<float>& scale = h_scale_[layer];
    for (ptrdiff_t j = 0; j < count; ++j) {
      const float* const h = rows + j * pitch_;
      float largest = 1;
      for (ptrdiff_t u = 0; u < H_; ++u) largest = std::max(largest, std::abs(h[u]));
      if (largest > 1 && scale.size() == 0) {
        scale = Buffer<float>(low_h_[layer].scale.size());
        std::fill_n(scale.data(), scale.size(), 1.0f);
      }
      if (scale.size()) scale[first + j] = largest;
      if (largest == 1) continue;
      std::vector<float> divided(h, h + H_);
      for (float& value : divided) value /= largest;
      low_h_[layer].round(*lstm_.level, first + j, 1, divided.data(), H_, true);
    }
  }
}

template <class T>
void LayerRows<T>::set(ptrdiff_t first, ptrdiff_t N, const T* h, const T* c) {
  const auto copy = [&](const T* from, Buffer<T>& rows) {
    for (ptrdiff_t n = 0; n < N; ++n) {
      T* const to = rows.data() + (first + n) * pitch_;
      if (from)
        std::copy_n(from + n * H_, H_, to);
      else
        std::fill_n(to, H_, T(0));
    }
  };
  for (size_t l = 0; l < h_.size(); ++l) {
    const ptrdiff_t at = static_cast<ptrdiff_t>(l) * N * H_;
    copy(h ? h + at : nullptr, h_[l]);
    copy(c ? c + at : nullptr, c_[l]);
    round_rows(l, first, N);
  }
}

// Everything that a layer adds to R h: complete when it returns.
template <class T>
void LayerRows<T>::gates_share(Team& team, size_t layer, ptrdiff_t count, const FirstInput<T>& input) {
  const PackedLayer<T>& packed = lstm_.layers[layer];
  const ptrdiff_t inputs = layer > 0 ? packed.inputs : input.fed;
  const Scope scope(Phase::kInput, static_cast<ptrdiff_t>(layer), [&] {
    return product_work(count, 4 * H_, inputs, operand_size<T>(lstm_.compute), sizeof(T), team.threads());
  });
  const auto product = [&](ptrdiff_t K, const T* x, ptrdiff_t x_row, const T* weights, const T* init,
                           ptrdiff_t init_row) {
    gemm_share<T>(lstm_.kernels(),
                  {.M = count,
                   .N = gates_pitch_,
                   .K = K,
                   .a = x,
                   .a_row = x_row,
                   .b = weights,
                   .init = init,
                   .init_row = init_row,
                   .c = gates_.data(),
                   .c_row = gates_pitch_},
                  team);
  };
  if (layer > 0) {
    if (!low())
      product(packed.inputs, h_[layer - 1].data(), pitch_, packed.input.data(), packed.bias.data(), 0);
    else if constexpr (std::is_same_v<T, float>)
      low_input_share(*lstm_.level, packed, low_h_[layer - 1], count, true, gates_.data(), gates_pitch_,
                      team);
  } else {
    const Share rows = share_of(count, team.thread(), team.threads());
    for (ptrdiff_t j = rows.begin; j < rows.end; ++j)
      std::copy_n(input.table + input.tokens[j] * gates_pitch_, gates_pitch_,
                  gates_.data() + j * gates_pitch_);
    if constexpr (std::is_same_v<T, float>)
      if (low() && input.fed > 0) low_fed_.round_share(*lstm_.level, count, input.x, input.fed, false, team);
    if (input.fed > 0) {
      team.barrier();
      if (!low())
        product(input.fed, input.x, input.fed, input.weights, gates_.data(), gates_pitch_);
      else if constexpr (std::is_same_v<T, float>)
        low_matrix_share(*lstm_.level, *input.low_weights, gates_pitch_, low_fed_, count, false,
                         gates_.data(), gates_pitch_, gates_.data(), gates_pitch_, team);
    }
  }
  team.barrier();
}

// One barrier after each product that the next one reads across threads; a single row's layer is one pass.
template <class T>
void LayerRows<T>::step_share(Team& team, ptrdiff_t count, const FirstInput<T>& input) {
  const Kernels<T>& k = lstm_.kernels();
  const ptrdiff_t H_pad = lstm_.shape.hidden_padded();
  const Share units =
      share_of(H_pad, team.thread(), team.threads(), low() ? kLowPanel : ptrdiff_t{2} * k.lanes);
  for (size_t l = 0; l < h_.size(); ++l) {
    const PackedLayer<T>& packed = lstm_.layers[l];
    CellForward<T> cell{.M = count,
                        .H = H_,
                        .H_pad = H_pad,
                        .unit_begin = units.begin,
                        .unit_end = units.end,
                        .h_prev = h_[l].data(),
                        .h_row = pitch_,
                        .recurrent = packed.recurrent.data(),
                        .input = gates_.data(),
                        .input_row = gates_pitch_,
                        .gates = nullptr,
                        .gates_row = 0,
                        .c_prev = c_[l].data(),
                        .c = c_[l].data(),
                        .c_row = pitch_,
                        .h = h_next_[l].data()};
    if (count == 1 && !low()) {
      StepForward<T> step{
          .cell = cell, .I = packed.inputs, .x = nullptr, .x_row = pitch_, .weights = packed.input.data()};
      if (l > 0) {
        step.cell.input = packed.bias.data();
        step.x = h_[l - 1].data();
      } else {
        step.cell.input = input.table + input.tokens[0] * gates_pitch_;
        step.I = input.fed;
        step.x = input.x;
        if (input.fed > 0) step.weights = input.weights;
      }
      StepScope scope(static_cast<ptrdiff_t>(l), [&] { return step_work(cell, step.I, lstm_.compute); });
      step.cell.ticks = scope.ticks();
      k.step_forward(step);
    } else {
      gates_share(team, l, count, input);
      StepScope scope(static_cast<ptrdiff_t>(l), [&] { return step_work(cell, 0, lstm_.compute); });
      cell.ticks = scope.ticks();
      if (!low())
        k.cell_forward(cell);
      else if constexpr (std::is_same_v<T, float>)
        low_cell_forward(*lstm_.level, packed, cell, gates_.data(), gates_pitch_, low_h_[l], low_h_next_[l],
                         0, 1, h_scale_[l].data());
    }
    team.barrier();
    if (team.thread() == 0) {
      std::swap(h_[l], h_next_[l]);
      std::swap(low_h_[l], low_h_next_[l]);
      h_scale_[l] = {};
    }
    team.barrier();
  }
}

template <class T>
void LayerRows<T>::gather(ptrdiff_t count, const int32_t* from) {
  const auto move = [&](Buffer<T>& rows, Buffer<T>& moved) {
    for (ptrdiff_t j = 0; j < count; ++j)
      std::copy_n(rows.data() + from[j] * pitch_, H_, moved.data() + j * pitch_);
    std::swap(rows, moved);
  };
  for (size_t l = 0; l < h_.size(); ++l) {  // h_next is free between steps
    move(c_[l], h_next_[l]);
    move(h_[l], h_next_[l]);
    round_rows(l, 0, count);
  }
}

template <class T>
T* LayerRows<T>::save(ptrdiff_t row, T* state) const {
  for (const std::vector<Buffer<T>>* layers : {&h_, &c_})
    for (const Buffer<T>& rows : *layers) state = std::copy_n(rows.data() + row * pitch_, H_, state);
  return state;
}

template <class T>
const T* LayerRows<T>::load(ptrdiff_t row, const T* state) {
  for (std::vector<Buffer<T>>* layers : {&h_, &c_})
    for (Buffer<T>& rows : *layers) {
      std::copy_n(state, H_, rows.data() + row * pitch_);
      state += H_;
    }
  for (size_t l = 0; l < h_.size(); ++l) round_rows(l, row, 1);
  return state;
}

template class LayerRows<float>;
template class LayerRows<double>;

}  // namespace fusedlstm
