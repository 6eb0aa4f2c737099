#include "decode/language_model.h"

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

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
  const ptrdiff_t V = vocabulary(), I = first.inputs, columns = first.bias.size();
  const bool low = lstm_->compute != Compute::kFull;
  LowRows low_x(lstm_->compute, low ? V : 0, I);
  run_job(0, nullptr, [&](Team& team) {
    if constexpr (std::is_same_v<T, float>) {
      if (low) {
        low_x.round_share(*lstm_->level, V, embedding_.data(), I, false, team);
        team.barrier();
        return low_input_share(*lstm_->level, first, low_x, V, false, table_.data(), columns, team);
      }
    }
    gemm_share<T>(lstm_->kernels(),
                  {.M = V,
                   .N = columns,
                   .K = I,
                   .a = embedding_.data(),
                   .a_row = I,
                   .b = first.input.data(),
                   .init = first.bias.data(),
                   .init_row = 0,
                   .c = table_.data(),
                   .c_row = columns},
                  team);
  });
}

template <class T>
LanguageModelRows<T>::LanguageModelRows(const LanguageModelDecoder<T>& model, ptrdiff_t capacity)
    : model_(model),
      capacity_(capacity),
      layers_(model.lstm(), capacity),
      low_output_(model.output().compute, capacity, model.output().inputs) {}

template <class T>
void LanguageModelRows<T>::prefill(ptrdiff_t first, ptrdiff_t N, const int32_t* prompts,
                                   const int32_t* lengths, const LstmStates<T>& initial, T* logits,
                                   const Poll& poll) {
  const ptrdiff_t L = model_.shape().num_layers, H = model_.shape().hidden_size,
                  longest = *std::max_element(lengths, lengths + N);
  std::vector<int32_t> tokens(static_cast<size_t>(N * longest));
  for (ptrdiff_t b = 0; b < N; prompts += lengths[b++])
    std::copy(prompts, prompts + lengths[b], tokens.begin() + b * longest);
  Buffer<T> h_n(L * N * H), c_n(L * N * H);
  lstm_forward<T>(
      model_.lstm(), N, longest, lengths,
      {.tokens = tokens.data(), .embedding = model_.embedding(), .vocabulary = model_.vocabulary()}, initial,
      {nullptr, h_n.data(), c_n.data()}, poll);
  linear_forward<T>(model_.output(), N, h_n.data() + (L - 1) * N * H, logits, poll);
  layers_.set(first, N, h_n.data(), c_n.data());
}

template <class T>
void LanguageModelRows<T>::step_share(Team& team, ptrdiff_t count, const int32_t* tokens, T* logits) {
  layers_.step_share(team, count, {.table = model_.table(), .tokens = tokens});
  const T* const h = layers_.h();
  round_for_share(team, model_.output(), count, h, layers_.pitch(), low_output_);
  linear_share(team, model_.output(), count, h, layers_.pitch(), low_output_, logits, vocabulary());
  team.barrier();
}

template class LanguageModelDecoder<float>;
template class LanguageModelDecoder<double>;
template class LanguageModelRows<float>;
template class LanguageModelRows<double>;

}  // namespace fusedlstm
