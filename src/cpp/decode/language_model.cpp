#include "decode/language_model.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "lstm/split.h"

namespace fusedlstm {

template <class T>
LanguageModelDecoder<T>::LanguageModelDecoder(std::shared_ptr<const PackedWeights<T>> lstm,
                                              const T* embedding,
                                              std::shared_ptr<const PackedLinear<T>> output)
    : lstm_(std::move(lstm)),
      output_(std::move(output)),
      embedding_(output_->outputs * lstm_->shape.input_size),
      table_(output_->outputs * 4 * lstm_->shape.hidden_padded()) {
  std::copy(embedding, embedding + embedding_.size(), embedding_.data());
  const PackedLayer<T>& first = lstm_->layers[0];
  LowRows low_x(lstm_->compute, low() ? vocabulary() : 0, first.inputs);
  run_job(0, nullptr, [&](Team& team) {
    if constexpr (std::is_same_v<T, float>) {
      if (low()) {
        low_x.round_share(*lstm_->level, vocabulary(), embedding_.data(), first.inputs, false, team);
        team.barrier();
      }
    }
    input_share(team, 0, vocabulary(), {embedding_.data(), first.inputs}, low_x, table_.data());
  });
}

template <class T>
void LanguageModelDecoder<T>::input_share(Team& team, ptrdiff_t layer, ptrdiff_t M, MatrixRows<T> x,
                                          const LowRows& low_x, T* out) const {
  const PackedLayer<T>& packed = lstm_->layers[static_cast<size_t>(layer)];
  const ptrdiff_t columns = packed.bias.size();
  const Scope scope(Phase::kInput, layer, [&] {
    return product_work(M, 4 * lstm_->shape.hidden_size, packed.inputs, operand_size<T>(lstm_->compute),
                        sizeof(T), team.threads());
  });
  if constexpr (std::is_same_v<T, float>)
    if (low()) return low_input_share(*lstm_->level, packed, low_x, M, layer > 0, out, columns, team);
  gemm_share<T>(lstm_->kernels(),
                {.M = M,
                 .N = columns,
                 .K = packed.inputs,
                 .a = x.data,
                 .a_row = x.pitch,
                 .b = packed.input.data(),
                 .init = packed.bias.data(),
                 .init_row = 0,
                 .c = out,
                 .c_row = columns},
                team);
}

template <class T>
LanguageModelRows<T>::LanguageModelRows(const LanguageModelDecoder<T>& model, ptrdiff_t capacity)
    : model_(model),
      capacity_(capacity),
      L_(model.shape().num_layers),
      H_(model.shape().hidden_size),
      pitch_(row_pitch<T>(H_)),
      gates_pitch_(4 * model.shape().hidden_padded()),
      gates_(capacity * gates_pitch_),
      low_output_(model.output().compute, capacity, H_) {
  for (ptrdiff_t layer = 0; layer < L_; ++layer) {
    for (std::vector<Buffer<T>>* state : {&h_, &h_next_, &c_})
      state->push_back(Buffer<T>::zeros(capacity * pitch_));
    for (std::vector<LowRows>* state : {&low_h_, &low_h_next_})
      state->emplace_back(model.lstm().compute, model.low() ? capacity : 0, H_);
  }
}

// h of these rows also to low precision, where products take it so
template <class T>
void LanguageModelRows<T>::round_rows(size_t layer, ptrdiff_t first, ptrdiff_t count) {
  if constexpr (std::is_same_v<T, float>)
    if (model_.low())
      low_h_[layer].round(*model_.lstm().level, first, count, h_[layer].data() + first * pitch_, pitch_,
                          true);
}

template <class T>
void LanguageModelRows<T>::prefill(ptrdiff_t first, ptrdiff_t N, const int32_t* prompts,
                                   const int32_t* lengths, const LstmStates<T>& initial, T* logits,
                                   const Poll& poll) {
  const ptrdiff_t longest = *std::max_element(lengths, lengths + N);
  std::vector<int32_t> tokens(static_cast<size_t>(N * longest));
  for (ptrdiff_t b = 0; b < N; prompts += lengths[b++])
    std::copy(prompts, prompts + lengths[b], tokens.begin() + b * longest);
  Buffer<T> h_n(L_ * N * H_), c_n(L_ * N * H_);
  lstm_forward<T>(
      model_.lstm(), N, longest, lengths,
      {.tokens = tokens.data(), .embedding = model_.embedding(), .vocabulary = model_.vocabulary()}, initial,
      {nullptr, h_n.data(), c_n.data()}, poll);
  linear_forward<T>(model_.output(), N, h_n.data() + (L_ - 1) * N * H_, logits, poll);
  for (ptrdiff_t layer = 0; layer < L_; ++layer) {
    const size_t l = static_cast<size_t>(layer);
    for (ptrdiff_t b = 0; b < N; ++b) {
      const ptrdiff_t from = (layer * N + b) * H_, to = (first + b) * pitch_;
      std::copy_n(h_n.data() + from, H_, h_[l].data() + to);
      std::copy_n(c_n.data() + from, H_, c_[l].data() + to);
    }
    round_rows(l, first, N);
  }
}

// One barrier after each product that the next one reads across threads; a single row's layer is one pass.
template <class T>
void LanguageModelRows<T>::step_share(Team& team, ptrdiff_t count, const int32_t* tokens, T* logits) {
  const PackedWeights<T>& lstm = model_.lstm();
  const Kernels<T>& k = lstm.kernels();
  const bool low = model_.low();
  const ptrdiff_t H_pad = lstm.shape.hidden_padded();
  const Share units =
      share_of(H_pad, team.thread(), team.threads(), low ? kLowPanel : ptrdiff_t{2} * k.lanes);
  for (ptrdiff_t layer = 0; layer < L_; ++layer) {
    const size_t l = static_cast<size_t>(layer);
    const PackedLayer<T>& packed = lstm.layers[l];
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
    if (count == 1 && !low) {
      const bool first = layer == 0;
      const Scope scope(Phase::kStep, layer,
                        [&] { return step_work(cell, first ? 0 : packed.inputs, lstm.compute); });
      cell.input = first ? model_.table_row(tokens[0]) : packed.bias.data();
      k.step_forward({.cell = cell,
                      .I = first ? 0 : packed.inputs,
                      .x = first ? nullptr : h_[l - 1].data(),
                      .x_row = pitch_,
                      .weights = packed.input.data()});
    } else {
      if (layer == 0) {
        const Share rows = share_of(count, team.thread(), team.threads());
        const Scope scope(Phase::kInput, layer,
                          [&] { return elements_work(rows.size() * gates_pitch_, 0, 2 * sizeof(T)); });
        for (ptrdiff_t j = rows.begin; j < rows.end; ++j)
          std::copy_n(model_.table_row(tokens[j]), gates_pitch_, gates_.data() + j * gates_pitch_);
      } else {
        model_.input_share(team, layer, count, {h_[l - 1].data(), pitch_}, low_h_[l - 1], gates_.data());
      }
      team.barrier();
      const Scope scope(Phase::kStep, layer, [&] { return step_work(cell, 0, lstm.compute); });
      if (!low)
        k.cell_forward(cell);
      else if constexpr (std::is_same_v<T, float>)
        low_cell_forward(*lstm.level, packed, cell, gates_.data(), gates_pitch_, low_h_[l], low_h_next_[l], 0,
                         1);
    }
    team.barrier();
    if (team.thread() == 0) {
      std::swap(h_[l], h_next_[l]);
      std::swap(low_h_[l], low_h_next_[l]);
    }
    team.barrier();
  }
  round_for_share(team, model_.output(), count, h_.back().data(), pitch_, low_output_);
  linear_share(team, model_.output(), count, h_.back().data(), pitch_, low_output_, logits, vocabulary());
  team.barrier();
}

template <class T>
void LanguageModelRows<T>::gather(ptrdiff_t count, const int32_t* from) {
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
void LanguageModelRows<T>::save(ptrdiff_t row, T* state) const {
  for (const std::vector<Buffer<T>>* layers : {&h_, &c_})
    for (const Buffer<T>& rows : *layers) state = std::copy_n(rows.data() + row * pitch_, H_, state);
}

template <class T>
void LanguageModelRows<T>::load(ptrdiff_t row, const T* state) {
  for (std::vector<Buffer<T>>* layers : {&h_, &c_})
    for (Buffer<T>& rows : *layers) {
      std::copy_n(state, H_, rows.data() + row * pitch_);
      state += H_;
    }
  for (size_t l = 0; l < h_.size(); ++l) round_rows(l, row, 1);
}

template class LanguageModelDecoder<float>;
template class LanguageModelDecoder<double>;
template class LanguageModelRows<float>;
template class LanguageModelRows<double>;

}  // namespace fusedlstm
