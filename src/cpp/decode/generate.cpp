#include "decode/generate.h"

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

// out (M, 4 H_pad) = W x + b of one layer
template <class T>
void LanguageModelDecoder<T>::input_share(Team& team, ptrdiff_t layer, ptrdiff_t M, MatrixRows<T> x,
                                          const LowRows& low_x, T* out) const {
  const PackedLayer<T>& packed = lstm_->layers[static_cast<size_t>(layer)];
  const ptrdiff_t columns = packed.bias.size();
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

// Row j of every matrix belongs to sequence id[j]. A sequence that ends gives its row to the last one, so
// that ended sequences cost nothing; a row's result does not depend on where it lies.
template <class T>
struct LanguageModelDecoder<T>::Live {
  ptrdiff_t L, H, pitch, gates_pitch;
  std::vector<ptrdiff_t> id;
  std::vector<int32_t> token;              // fed next
  std::vector<Buffer<T>> h, h_next, c;     // by layer: (N, H_pad)
  std::vector<LowRows> low_h, low_h_next;  // by layer, in low precision
  Buffer<T> gates;                         // (N, 4 H_pad): W x + b of the layer at hand
  Buffer<T> logits;                        // (N, V)

  Live(const LstmShape& shape, Compute compute, ptrdiff_t N, ptrdiff_t V)
      : L(shape.num_layers),
        H(shape.hidden_size),
        pitch(row_pitch<T>(shape.hidden_size)),
        gates_pitch(4 * shape.hidden_padded()),
        token(static_cast<size_t>(N)),
        gates(N * gates_pitch),
        logits(N * V) {
    for (ptrdiff_t j = 0; j < N; ++j) id.push_back(j);
    for (ptrdiff_t layer = 0; layer < L; ++layer) {
      for (std::vector<Buffer<T>>* state : {&h, &h_next, &c}) state->push_back(Buffer<T>::zeros(N * pitch));
      for (std::vector<LowRows>* state : {&low_h, &low_h_next})
        state->emplace_back(compute, compute == Compute::kFull ? 0 : N, H);
    }
  }
  ptrdiff_t count() const { return static_cast<ptrdiff_t>(id.size()); }

  // States of row j to the place of its sequence, (L, N, H).
  void save_states(ptrdiff_t j, ptrdiff_t N, T* h_out, T* c_out) const {
    for (ptrdiff_t layer = 0; layer < L; ++layer) {
      const ptrdiff_t to = (layer * N + id[static_cast<size_t>(j)]) * H;
      const T *h_row = h[static_cast<size_t>(layer)].data() + j * pitch,
              *c_row = c[static_cast<size_t>(layer)].data() + j * pitch;
      std::copy(h_row, h_row + H, h_out + to);
      std::copy(c_row, c_row + H, c_out + to);
    }
  }
  void remove(ptrdiff_t j) {
    const ptrdiff_t last = count() - 1;
    for (std::vector<Buffer<T>>* state : {&h, &c})
      for (Buffer<T>& rows : *state)
        std::copy(rows.data() + last * pitch, rows.data() + last * pitch + H, rows.data() + j * pitch);
    for (LowRows& rows : low_h) rows.copy_row(last, j);
    id[static_cast<size_t>(j)] = id.back();
    token[static_cast<size_t>(j)] = token[static_cast<size_t>(last)];
    id.pop_back();
  }
};

// The prompts as one ragged batch, no tape; leaves the states and the logits of the first new token.
template <class T>
void LanguageModelDecoder<T>::prefill(const Request& request, Live& live, const Poll& poll) const {
  const ptrdiff_t N = request.N,
                  longest = *std::max_element(request.prompt_lengths, request.prompt_lengths + N);
  std::vector<int32_t> tokens(static_cast<size_t>(N * longest));
  const int32_t* prompt = request.prompts;
  for (ptrdiff_t b = 0; b < N; prompt += request.prompt_lengths[b++])
    std::copy(prompt, prompt + request.prompt_lengths[b], tokens.begin() + b * longest);
  Buffer<T> h_n(live.L * N * live.H), c_n(live.L * N * live.H);
  lstm_forward<T>(*lstm_, N, longest, request.prompt_lengths,
                  {.tokens = tokens.data(), .embedding = embedding_.data(), .vocabulary = vocabulary()},
                  {request.h0, request.c0}, {nullptr, h_n.data(), c_n.data()}, poll);
  for (ptrdiff_t layer = 0; layer < live.L; ++layer) {
    for (ptrdiff_t b = 0; b < N; ++b) {
      const ptrdiff_t from = (layer * N + b) * live.H;
      std::copy(h_n.data() + from, h_n.data() + from + live.H,
                live.h[static_cast<size_t>(layer)].data() + b * live.pitch);
      std::copy(c_n.data() + from, c_n.data() + from + live.H,
                live.c[static_cast<size_t>(layer)].data() + b * live.pitch);
    }
    const size_t l = static_cast<size_t>(layer);
    if constexpr (std::is_same_v<T, float>)
      if (low()) live.low_h[l].round(*lstm_->level, 0, N, live.h[l].data(), live.pitch, true);
  }
  linear_forward<T>(*output_, N, h_n.data() + (live.L - 1) * N * live.H, live.logits.data(), poll);
}

// One step of all live rows: a thread's share of every layer, then of the logits. One barrier after each
// product that the next one reads across threads; a single row's layer is one pass.
template <class T>
void LanguageModelDecoder<T>::layers_share(Team& team, Live& live) const {
  const Kernels<T>& k = lstm_->kernels();
  const ptrdiff_t M = live.count(), H_pad = lstm_->shape.hidden_padded();
  const Share units =
      share_of(H_pad, team.thread(), team.threads(), low() ? kLowPanel : ptrdiff_t{2} * k.lanes);
  for (ptrdiff_t layer = 0; layer < live.L; ++layer) {
    const size_t l = static_cast<size_t>(layer);
    const PackedLayer<T>& packed = lstm_->layers[l];
    CellForward<T> cell{.M = M,
                        .H = live.H,
                        .H_pad = H_pad,
                        .unit_begin = units.begin,
                        .unit_end = units.end,
                        .h_prev = live.h[l].data(),
                        .h_row = live.pitch,
                        .recurrent = packed.recurrent.data(),
                        .input = live.gates.data(),
                        .input_row = live.gates_pitch,
                        .gates = nullptr,
                        .gates_row = 0,
                        .c_prev = live.c[l].data(),
                        .c = live.c[l].data(),
                        .c_row = live.pitch,
                        .h = live.h_next[l].data()};
    if (M == 1 && !low()) {
      const bool first = layer == 0;
      cell.input = first ? table_.data() + live.token[0] * live.gates_pitch : packed.bias.data();
      k.step_forward({.cell = cell,
                      .I = first ? 0 : packed.inputs,
                      .x = first ? nullptr : live.h[l - 1].data(),
                      .x_row = live.pitch,
                      .weights = packed.input.data()});
    } else {
      if (layer == 0) {
        const Share rows = share_of(M, team.thread(), team.threads());
        for (ptrdiff_t j = rows.begin; j < rows.end; ++j) {
          const T* row = table_.data() + live.token[static_cast<size_t>(j)] * live.gates_pitch;
          std::copy(row, row + live.gates_pitch, live.gates.data() + j * live.gates_pitch);
        }
      } else {
        input_share(team, layer, M, {live.h[l - 1].data(), live.pitch}, live.low_h[l - 1], live.gates.data());
      }
      team.barrier();
      if (!low())
        k.cell_forward(cell);
      else if constexpr (std::is_same_v<T, float>)
        low_cell_forward(*lstm_->level, packed, cell, live.gates.data(), live.gates_pitch, live.low_h[l],
                         live.low_h_next[l], 0, 1);
    }
    team.barrier();
    if (team.thread() == 0) {
      std::swap(live.h[l], live.h_next[l]);
      std::swap(live.low_h[l], live.low_h_next[l]);
    }
    team.barrier();
  }
  gemm_share<T>(k,
                {.M = M,
                 .N = output_->outputs,
                 .K = live.H,
                 .a = live.h.back().data(),
                 .a_row = live.pitch,
                 .b = output_->forward.data(),
                 .init = output_->bias.data(),
                 .init_row = 0,
                 .c = live.logits.data(),
                 .c_row = output_->outputs},
                team);
  team.barrier();
}

template <class T>
void LanguageModelDecoder<T>::generate(const Request& request, const Result& result, const Poll& poll) const {
  const ptrdiff_t N = request.N, V = vocabulary(), most = request.max_new_tokens;
  std::fill(result.tokens, result.tokens + N * most, -1);
  std::fill(result.log_probability, result.log_probability + N * most, T(0));
  std::fill(result.lengths, result.lengths + N, 0);
  if (N == 0) return;
  Live live(lstm_->shape, lstm_->compute, N, V);
  prefill(request, live, poll);
  Sampler<T> sampler(lstm_->kernels(), V, request.sampling);
  std::vector<int32_t> step_tokens(static_cast<size_t>(N));

  const auto sample = [&](ptrdiff_t step) {  // from the logits to the next token of every live row
    std::fill(step_tokens.begin(), step_tokens.end(), -1);
    for (ptrdiff_t j = 0; j < live.count(); ++j) {
      const ptrdiff_t b = live.id[static_cast<size_t>(j)];
      const Choice<T> choice =
          sampler.choose(live.logits.data() + j * V, request.seeds[b], static_cast<uint32_t>(step));
      live.token[static_cast<size_t>(j)] = step_tokens[static_cast<size_t>(b)] = choice.token;
      result.tokens[b * most + step] = choice.token;
      result.log_probability[b * most + step] = choice.log_probability;
      ++result.lengths[b];
    }
    if (request.on_tokens) request.on_tokens(step_tokens.data());
    for (ptrdiff_t j = live.count() - 1; j >= 0; --j) {
      if (step + 1 < most && live.token[static_cast<size_t>(j)] != request.stop_token) continue;
      live.save_states(j, N, result.h, result.c);
      live.remove(j);
    }
  };
  if (most == 0) {
    for (ptrdiff_t j = 0; j < N; ++j) live.save_states(j, N, result.h, result.c);
    return;
  }
  run_job(0, poll, [&](Team& team) {
    for (ptrdiff_t step = 0;; ++step) {
      if (team.thread() == 0) sample(step);
      team.barrier();
      if (live.count() == 0) return;
      layers_share(team, live);
    }
  });
}

template class LanguageModelDecoder<float>;
template class LanguageModelDecoder<double>;

}  // namespace fusedlstm
