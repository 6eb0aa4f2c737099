// Forward through all layers and directions. Per layer: a chunk of steps has its input product
// W_ih x + b made at once (or looked up, for token input); then step by step the recurrent product and the
// gates.
#include <algorithm>
#include <numeric>

#include "lstm/lstm.h"
#include "lstm/split.h"

namespace fusedlstm {
namespace {

constexpr ptrdiff_t kChunkRows =
    384;  // of input products made at a time: they should stay in the last-level cache

// h0 or c0 of one layer and direction into the first N rows of a state matrix, in the order of slots.
template <class T>
void initial_states(const Rows& rows, const T* states, ptrdiff_t H, ptrdiff_t H_pad, ptrdiff_t pitch,
                    T* out) {
  for (ptrdiff_t slot = 0; slot < rows.batch(); ++slot) {
    T* row = out + slot * pitch;
    const T* state = states ? states + rows.sequence(slot) * H : nullptr;
    for (ptrdiff_t u = 0; u < H; ++u) row[u] = state ? state[u] : T(0);
    for (ptrdiff_t u = H; u < H_pad; ++u) row[u] = T(0);
  }
}

template <class T>
struct LayerRun {
  const PackedWeights<T>& w;
  const PackedLayer<T>& layer;
  const Rows& rows;
  const T* table = nullptr;            // token input: (distinct, 4 H_pad), gates_pitch apart
  const int32_t* table_row = nullptr;  // by packed row
  bool keep;                           // gates and c of every step
  LayerTape<T>& tape;
  ptrdiff_t gates_pitch, state_pitch;

  ptrdiff_t steps_in_chunk(ptrdiff_t s) const {
    ptrdiff_t end = s + 1;
    while (end < rows.steps() && rows.start(end + 1) - rows.start(s) <= kChunkRows) ++end;
    return end - s;
  }
  ptrdiff_t gates_rows() const {  // rows the gates buffer must hold
    if (keep) return rows.total();
    ptrdiff_t most = 0;
    for (ptrdiff_t s = 0; s < rows.steps();) {
      const ptrdiff_t n = steps_in_chunk(s);
      most = std::max(most, rows.start(s + n) - rows.start(s));
      s += n;
    }
    return most;
  }

  void input_products(Team& team, ptrdiff_t row, ptrdiff_t count, T* gates) const {
    const ptrdiff_t columns = layer.bias.size();
    if (table_row) {
      const Share share = share_of(count, team.thread(), team.threads());
      for (ptrdiff_t r = share.begin; r < share.end; ++r) {
        const T* from = table + table_row[row + r] * gates_pitch;
        std::copy(from, from + columns, gates + r * gates_pitch);
      }
      return;
    }
    gemm_share<T>(w.kernels(),
                  {.M = count,
                   .N = columns,
                   .K = layer.inputs,
                   .a = tape.x.row(row),
                   .a_row = tape.x.pitch,
                   .b = layer.input.data(),
                   .init = layer.bias.data(),
                   .init_row = 0,
                   .c = gates,
                   .c_row = gates_pitch},
                  team);
  }

  void operator()(Team& team) const {
    const ptrdiff_t H_pad = w.shape.hidden_padded();
    const Kernels<T>& k = w.kernels();
    const bool by_sequences = split_by_sequences(rows.batch(), team.threads());
    const Slots slots = by_sequences ? Slots{team.thread(), team.threads()} : Slots{0, 1};
    const Share units =
        by_sequences ? Share{0, H_pad} : share_of(H_pad, team.thread(), team.threads(), k.lanes);
    for (ptrdiff_t s = 0; s < rows.steps();) {
      const ptrdiff_t chunk = steps_in_chunk(s), first = rows.start(s), end = s + chunk;
      T* const gates = tape.gates.data() + (keep ? first * gates_pitch : 0);
      input_products(team, first, rows.start(end) - first, gates);
      team.barrier();
      for (; s < end; ++s) {
        T* const step_gates = gates + (rows.start(s) - first + slots.first) * gates_pitch;
        const ptrdiff_t c_before = keep ? rows.state_before(s) : 0, c_after = keep ? rows.state_after(s) : 0;
        const ptrdiff_t slot = slots.first * state_pitch;
        k.cell_forward({.M = slots.count(rows.active(s)),
                        .H = w.shape.hidden_size,
                        .H_pad = H_pad,
                        .unit_begin = units.begin,
                        .unit_end = units.end,
                        .h_prev = tape.h.data() + rows.state_before(s) * state_pitch + slot,
                        .h_row = slots.stride * state_pitch,
                        .recurrent = layer.recurrent.data(),
                        .input = step_gates,
                        .input_row = slots.stride * gates_pitch,
                        .gates = keep ? step_gates : nullptr,
                        .gates_row = slots.stride * gates_pitch,
                        .c_prev = tape.c.data() + c_before * state_pitch + slot,
                        .c = tape.c.data() + c_after * state_pitch + slot,
                        .c_row = slots.stride * state_pitch,
                        .h = tape.h.data() + rows.state_after(s) * state_pitch + slot});
        if (by_sequences)
          team.poll();
        else
          team.barrier();
      }
      team.barrier();  // the next chunk overwrites what others may still read
    }
  }
};

// The rows of one layer and direction's input, in its own order of steps: from the user's x, or from the
// layer below (both its directions side by side, with dropout).
template <class T>
class InputRows {
 public:
  InputRows(const Tape<T>& tape, const Kernels<T>& kernels, const T* x, ptrdiff_t layer, ptrdiff_t direction)
      : tape_(tape), kernels_(kernels), x_(x), layer_(layer), direction_(direction) {}

  void copy_share(const Team& team, T* to, ptrdiff_t pitch) const {
    const Rows& rows = tape_.rows;
    const Share steps = share_of(rows.steps(), team.thread(), team.threads());
    for (ptrdiff_t s = steps.begin; s < steps.end; ++s)
      for (ptrdiff_t slot = 0; slot < rows.active(s); ++slot)
        copy_row(s, slot, to + (rows.start(s) + slot) * pitch);
  }

 private:
  void copy_row(ptrdiff_t s, ptrdiff_t slot, T* to) const {
    const Rows& rows = tape_.rows;
    if (layer_ == 0) {
      const ptrdiff_t I = tape_.shape.input_size;
      const T* from = x_ + rows.user_row(s, slot, direction_) * I;
      std::copy(from, from + I, to);
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

  const Tape<T>& tape_;
  const Kernels<T>& kernels_;
  const T* x_;
  ptrdiff_t layer_, direction_;
};

// Which token ids occur, and the index among them that every packed row takes.
template <class T>
void find_tokens(Tape<T>& tape, const LstmInput<T>& input) {
  const Rows& rows = tape.rows;
  TokenInput<T>& tokens = tape.tokens;
  tokens.vocabulary = input.vocabulary;
  for (ptrdiff_t direction = 0; direction < tape.shape.directions(); ++direction) {
    std::vector<int32_t>& ids = tokens.slot.emplace_back();
    ids.reserve(static_cast<size_t>(rows.total()));
    for (ptrdiff_t s = 0; s < rows.steps(); ++s)
      for (ptrdiff_t slot = 0; slot < rows.active(s); ++slot)
        ids.push_back(input.tokens[rows.user_row(s, slot, direction)]);
  }
  tokens.distinct = tokens.slot[0];
  std::sort(tokens.distinct.begin(), tokens.distinct.end());
  tokens.distinct.erase(std::unique(tokens.distinct.begin(), tokens.distinct.end()), tokens.distinct.end());
  const int32_t top = tokens.distinct.empty() ? 0 : tokens.distinct.back();
  std::vector<int32_t> index(static_cast<size_t>(top) + 1);
  for (size_t u = 0; u < tokens.distinct.size(); ++u)
    index[static_cast<size_t>(tokens.distinct[u])] = static_cast<int32_t>(u);
  for (std::vector<int32_t>& ids : tokens.slot)
    for (int32_t& id : ids) id = index[static_cast<size_t>(id)];
  const ptrdiff_t I = tape.shape.input_size, pitch = row_pitch<T>(I);
  tokens.embedded = Buffer<T>(static_cast<ptrdiff_t>(tokens.distinct.size()) * pitch);
  for (size_t u = 0; u < tokens.distinct.size(); ++u) {
    const T* from = input.embedding + tokens.distinct[u] * I;
    std::copy(from, from + I, tokens.embedded.data() + static_cast<ptrdiff_t>(u) * pitch);
  }
}

template <class T>
void forward_layer(const PackedWeights<T>& w, Tape<T>& tape, const LstmInput<T>& input,
                   const LstmStates<T>& initial, ptrdiff_t layer, ptrdiff_t direction, bool keep,
                   const Poll& poll) {
  const Rows& rows = tape.rows;
  const LstmShape& shape = tape.shape;
  const ptrdiff_t N = rows.batch(), H = shape.hidden_size, H_pad = shape.hidden_padded(),
                  D = shape.directions();
  const ptrdiff_t index = layer * D + direction;
  LayerTape<T>& own = tape.layers[static_cast<size_t>(index)];
  LayerRun<T> run{.w = w,
                  .layer = w.layers[static_cast<size_t>(index)],
                  .rows = rows,
                  .keep = keep,
                  .tape = own,
                  .gates_pitch = tape.gates_pitch(),
                  .state_pitch = tape.state_pitch()};
  own.gates = Buffer<T>(run.gates_rows() * run.gates_pitch);
  own.h = Buffer<T>((N + rows.total()) * run.state_pitch);
  own.c = Buffer<T>((N + (keep ? rows.total() : 0)) * run.state_pitch);
  const ptrdiff_t state = index * N * H;
  initial_states(rows, initial.h0 ? initial.h0 + state : nullptr, H, H_pad, run.state_pitch, own.h.data());
  initial_states(rows, initial.c0 ? initial.c0 + state : nullptr, H, H_pad, run.state_pitch, own.c.data());

  const bool tokens = layer == 0 && tape.token_input;
  const ptrdiff_t inputs = shape.layer_inputs(layer);
  Buffer<T> table;
  bool copy = false;
  if (tokens) {
    table = Buffer<T>(static_cast<ptrdiff_t>(tape.tokens.distinct.size()) * run.gates_pitch);
    run.table = table.data();
    run.table_row = tape.tokens.slot[static_cast<size_t>(direction)].data();
  } else if (layer == 0 && !keep && direction == 0 && rows.same_as_user()) {
    own.x = {input.x, inputs};
  } else if (layer > 0 && D == 1 && tape.dropout == 0) {
    own.x = {tape.layers[static_cast<size_t>(layer - 1)].h.data() + N * run.state_pitch, run.state_pitch};
  } else {
    copy = true;
    own.copy = Buffer<T>(rows.total() * row_pitch<T>(inputs));
    own.x = {own.copy.data(), row_pitch<T>(inputs)};
  }
  const InputRows<T> gather(tape, w.kernels(), input.x, layer, direction);
  run_job(layer_threads(N, rows.total(), H, inputs), poll, [&](Team& team) {
    if (copy) gather.copy_share(team, own.copy.data(), own.x.pitch);
    if (tokens)
      gemm_share<T>(w.kernels(),
                    {.M = static_cast<ptrdiff_t>(tape.tokens.distinct.size()),
                     .N = run.layer.bias.size(),
                     .K = inputs,
                     .a = tape.tokens.embedded.data(),
                     .a_row = row_pitch<T>(inputs),
                     .b = run.layer.input.data(),
                     .init = run.layer.bias.data(),
                     .init_row = 0,
                     .c = table.data(),
                     .c_row = run.gates_pitch},
                    team);
    if (copy || tokens) team.barrier();
    run(team);
  });
  if (keep) return;
  own.gates = Buffer<T>();
  own.copy = Buffer<T>();
}

template <class T>
void write_outputs(const Tape<T>& tape, bool keep, const LstmOutputs<T>& out) {
  const Rows& rows = tape.rows;
  const LstmShape& shape = tape.shape;
  const ptrdiff_t N = rows.batch(), T_ = rows.time(), H = shape.hidden_size, D = shape.directions();
  const ptrdiff_t pitch = tape.state_pitch();
  for (size_t index = 0; index < tape.layers.size(); ++index) {
    for (ptrdiff_t slot = 0; slot < N; ++slot) {
      const ptrdiff_t to = (static_cast<ptrdiff_t>(index) * N + rows.sequence(slot)) * H;
      const ptrdiff_t from = rows.final_state(slot);
      const T* h = tape.layers[index].h.data() + from * pitch;
      const T* c = tape.layers[index].c.data() + (keep ? from : slot) * pitch;
      std::copy(h, h + H, out.h_n + to);
      std::copy(c, c + H, out.c_n + to);
    }
  }
  if (!out.y) return;
  const size_t top = static_cast<size_t>((shape.num_layers - 1) * D);
  run_job(rows.total() * D * H < (1 << 16) ? 1 : 0, nullptr, [&](Team& team) {
    const Share slots = share_of(N, team.thread(), team.threads());
    for (ptrdiff_t slot = slots.begin; slot < slots.end; ++slot) {
      T* y = out.y + rows.sequence(slot) * T_ * D * H;
      for (ptrdiff_t s = 0; s < rows.length(slot); ++s) {
        for (ptrdiff_t d = 0; d < D; ++d) {
          const T* h =
              tape.layers[top + static_cast<size_t>(d)].h.data() + (rows.state_after(s) + slot) * pitch;
          std::copy(h, h + H, y + (rows.time_of(s, slot, d) * D + d) * H);
        }
      }
      std::fill(y + rows.length(slot) * D * H, y + T_ * D * H, T(0));
    }
  });
}

template <class T>
std::unique_ptr<Tape<T>> forward(const PackedWeights<T>& w, ptrdiff_t N, ptrdiff_t time,
                                 const int32_t* lengths, const LstmInput<T>& input,
                                 const LstmStates<T>& initial, T dropout, uint64_t seed, bool keep,
                                 const LstmOutputs<T>& out, const Poll& poll) {
  auto tape = std::make_unique<Tape<T>>(Tape<T>{.shape = w.shape,
                                                .rows = Rows(N, time, lengths),
                                                .dropout = dropout,
                                                .seed = seed,
                                                .layers = {},
                                                .tokens = {}});
  const ptrdiff_t D = w.shape.directions();
  tape->layers.resize(static_cast<size_t>(w.shape.num_layers * D));
  if ((tape->token_input = input.tokens != nullptr)) find_tokens(*tape, input);
  for (ptrdiff_t layer = 0; layer < w.shape.num_layers; ++layer)
    for (ptrdiff_t direction = 0; direction < D; ++direction)
      forward_layer(w, *tape, input, initial, layer, direction, keep, poll);
  write_outputs(*tape, keep, out);
  return tape;
}

}  // namespace

template <class T>
void lstm_forward(const PackedWeights<T>& w, ptrdiff_t N, ptrdiff_t time, const int32_t* lengths,
                  const LstmInput<T>& input, const LstmStates<T>& initial, const LstmOutputs<T>& out,
                  const Poll& poll) {
  forward<T>(w, N, time, lengths, input, initial, T(0), 0, false, out, poll);
}

template <class T>
std::unique_ptr<Tape<T>> lstm_forward_tape(const PackedWeights<T>& w, ptrdiff_t N, ptrdiff_t time,
                                           const int32_t* lengths, const LstmInput<T>& input,
                                           const LstmStates<T>& initial, T dropout, uint64_t seed,
                                           const LstmOutputs<T>& out, const Poll& poll) {
  return forward<T>(w, N, time, lengths, input, initial, dropout, seed, true, out, poll);
}

#define FUSEDLSTM_INSTANTIATE(T)                                                                             \
  template void lstm_forward(const PackedWeights<T>&, ptrdiff_t, ptrdiff_t, const int32_t*,                  \
                             const LstmInput<T>&, const LstmStates<T>&, const LstmOutputs<T>&, const Poll&); \
  template std::unique_ptr<Tape<T>> lstm_forward_tape(                                                       \
      const PackedWeights<T>&, ptrdiff_t, ptrdiff_t, const int32_t*, const LstmInput<T>&,                    \
      const LstmStates<T>&, T, uint64_t, const LstmOutputs<T>&, const Poll&);
FUSEDLSTM_INSTANTIATE(float)
FUSEDLSTM_INSTANTIATE(double)
#undef FUSEDLSTM_INSTANTIATE

}  // namespace fusedlstm
