// Forward through all layers and directions. Per layer: a chunk of steps has its input product
// W_ih x + b made at once (or looked up, for token input); then step by step the recurrent product and the
// gates.
#include <algorithm>
#include <numeric>

#include "lstm/layer_input.h"
#include "lstm/low_precision.h"
#include "lstm/lstm.h"
#include "lstm/split.h"
#include "lstm/step_work.h"

namespace fusedlstm {
namespace {

// Rows of a chunk: their products should be worth packing, or reading weights again that no cache near the
// core holds. Where it holds them and there is no tape, few rows, so that their gates are still there when
// the steps take them. For training, one block of the weight gradients' rows. A lean tape keeps c once for a
// chunk, which must be little for each of its steps.
constexpr ptrdiff_t kChunkRows = 512, kChunkRowsNear = 128, kLeanSteps = 16;
constexpr ptrdiff_t kNearBytes = 1 << 20;

template <class T>
ptrdiff_t chunk_rows(const LstmShape& shape, TapeMode mode) {
  if (mode != TapeMode::kNone) return kReductionBlock;
  const ptrdiff_t inputs = std::max(shape.input_size, shape.hidden_size * shape.directions());
  const ptrdiff_t weight_bytes = 4 * shape.hidden_size * inputs * static_cast<ptrdiff_t>(sizeof(T));
  return weight_bytes <= kNearBytes ? kChunkRowsNear : kChunkRows;
}

template <class T>
struct LayerRun {
  const PackedWeights<T>& w;
  const PackedLayer<T>& layer;
  Tape<T>& tape;
  LayerTape<T>& own;
  LayerInput<T>& input;
  ptrdiff_t index;  // of the layer, for the profiler
  ptrdiff_t direction;
  const LstmStates<T>& initial;
  const LstmOutputs<T>& out;
  T* y;                   // out.y, of the top layer; or null
  Buffer<T> chunk_gates;  // where the tape has none
  LowRows low_h[2];       // low precision: h before and after a step

  void operator()(Team& team) {
    if (input.by_token()) {
      input.make_table_share(team);
      team.barrier();
    }
    const RowSet slots = thread_slots(tape.rows, team);
    set_states(slots);
    for (ptrdiff_t chunk = 0; chunk < tape.chunks.count(); ++chunk) steps(team, chunk);
    write_states(slots);
    if (y && direction == 0) write_padding(slots);
  }

 private:
  void set_states(const RowSet& slots) {
    const LstmShape& shape = w.shape;
    const ptrdiff_t H = shape.hidden_size, pitch = tape.state_pitch(),
                    at = (index * shape.directions() + direction) * tape.rows.batch() * H;
    const auto set = [&](const T* states, T* to) {
      states_by_slot(tape.rows, slots, states ? states + at : nullptr, H, shape.hidden_padded(), pitch, to);
    };
    set(initial.h0, own.h.data());
    set(initial.c0, own.c.data());
    if constexpr (std::is_same_v<T, float>)
      if (w.compute != Compute::kFull)
        low_h[0].round_units(*w.level, slots.first, slots.stride, slots.size(), 0, H,
                             own.h.data() + slots.first * pitch, slots.stride * pitch);
  }

  void write_states(const RowSet& slots) const {
    const Rows& rows = tape.rows;
    const bool keep_c = tape.mode == TapeMode::kFull || tape.mode == TapeMode::kHalf;
    const ptrdiff_t H = w.shape.hidden_size, pitch = tape.state_pitch(),
                    first = (index * w.shape.directions() + direction) * rows.batch();
    for (ptrdiff_t slot = slots.first; slot < slots.end; slot += slots.stride) {
      const ptrdiff_t to = (first + rows.sequence(slot)) * H;
      std::copy_n(own.h.data() + own.h_final(rows, slot) * pitch, H, out.h_n + to);
      std::copy_n(own.c.data() + (keep_c ? rows.final_state(slot) : slot) * pitch, H, out.c_n + to);
    }
  }

  // y is 0 past a sequence's length.
  void write_padding(const RowSet& slots) const {
    const Rows& rows = tape.rows;
    const ptrdiff_t outputs = w.shape.outputs();
    for (ptrdiff_t slot = slots.first; slot < slots.end; slot += slots.stride) {
      T* const sequence = y + rows.sequence(slot) * rows.time() * outputs;
      std::fill(sequence + rows.length(slot) * outputs, sequence + rows.time() * outputs, T(0));
    }
  }

  void steps(Team& team, ptrdiff_t chunk) {
    const Rows& rows = tape.rows;
    const bool full = tape.mode == TapeMode::kFull, half = tape.mode == TapeMode::kHalf,
               keep_c = full || half;
    const ptrdiff_t begin = tape.chunks.begin(chunk), end = tape.chunks.end(chunk), first = rows.start(begin);
    const ptrdiff_t gates_pitch = tape.gates_pitch(), state_pitch = tape.state_pitch();
    T* const gates = full ? own.gates.data() + first * gates_pitch : chunk_gates.data();
    const ThreadRows mine = thread_rows(rows, begin, end, team);
    const auto wait = [&] {
      if (!mine.own) team.barrier();
    };
    wait();  // others may still read what this chunk overwrites
    if (own.copy.size())
      input.copy_share(team, begin, end, own.copy.data() + first * own.x.pitch);
    else
      input.gather_share(team, begin, end);
    wait();
    input.products_share(team, begin, end, gates);
    if (tape.mode == TapeMode::kLean) {
      const RowSet states = thread_rows(rows, begin, begin + 1, team);
      for (ptrdiff_t slot = states.first; slot < states.end; slot += states.stride)
        std::copy_n(own.c.data() + slot * state_pitch, state_pitch,
                    own.c_chunks.data() + (tape.chunks.state(chunk) + slot) * state_pitch);
    }
    wait();

    const ptrdiff_t H_pad = w.shape.hidden_padded();
    const bool by_sequences = split_by_sequences(rows.batch(), team.threads());
    const Slots slots = by_sequences ? Slots{team.thread(), team.threads()} : Slots{0, 1};
    const bool low = w.compute != Compute::kFull;
    const ptrdiff_t block = low ? kLowPanel : w.kernels().lanes;
    const Share units =
        by_sequences ? Share{0, H_pad} : share_of(H_pad, team.thread(), team.threads(), block);
    const ptrdiff_t slot = slots.first * state_pitch;
    for (ptrdiff_t s = begin; s < end; ++s) {
      T* const step_gates = gates + (rows.start(s) - first + slots.first) * gates_pitch;
      CellForward<T> step{.M = slots.count(rows.active(s)),
                          .H = w.shape.hidden_size,
                          .H_pad = H_pad,
                          .unit_begin = units.begin,
                          .unit_end = units.end,
                          .h_prev = own.h.data() + own.h_before(rows, s) * state_pitch + slot,
                          .h_row = slots.stride * state_pitch,
                          .recurrent = layer.recurrent.data(),
                          .input = step_gates,
                          .input_row = slots.stride * gates_pitch,
                          .gates = keep_c ? step_gates : nullptr,
                          .gates_row = slots.stride * gates_pitch,
                          .c_prev = own.c.data() + (keep_c ? rows.state_before(s) * state_pitch : 0) + slot,
                          .c = own.c.data() + (keep_c ? rows.state_after(s) * state_pitch : 0) + slot,
                          .c_row = slots.stride * state_pitch,
                          .h = own.h.data() + own.h_after(rows, s) * state_pitch + slot,
                          .descending = s % 2 != 0};
      {
        StepScope scope(index, [&] { return step_work(step, 0, w.compute); });
        step.ticks = scope.ticks();
        if (!low)
          w.kernels().cell_forward(step);
        else if constexpr (std::is_same_v<T, float>)
          low_cell_forward(*w.level, layer, step, step_gates, step.input_row, low_h[s % 2],
                           low_h[(s + 1) % 2], slots.first, slots.stride);
      }
      if (y) write_share(s, slots, units);
      if (by_sequences)
        team.poll();
      else
        team.barrier();
    }
    wait();
    if (!half) return;
    const Scope scope(Phase::kCopy, index,
                      [&] { return elements_work(mine.size() * 4 * H_pad, 2, sizeof(T) + 2); });
    for (ptrdiff_t r = mine.first; r < mine.end; r += mine.stride)
      w.kernels().narrow_gates(H_pad, gates + r * gates_pitch, own.gates16.data() + (first + r) * 4 * H_pad);
    wait();
  }

  // What this thread has made of h in a step, to y while it is in a cache.
  void write_share(ptrdiff_t s, const Slots& slots, const Share& units) const {
    const Rows& rows = tape.rows;
    const ptrdiff_t H = w.shape.hidden_size, D = w.shape.directions(), active = rows.active(s);
    const ptrdiff_t begin = std::min(units.begin, H), count = std::min(units.end, H) - begin;
    const Scope scope(Phase::kCopy, index,
                      [&] { return elements_work(slots.count(active) * count, 0, 2 * sizeof(T)); });
    for (ptrdiff_t slot = slots.first; slot < active; slot += slots.stride) {
      const T* const h = own.h.data() + (own.h_after(rows, s) + slot) * tape.state_pitch() + begin;
      std::copy(h, h + count, y + (rows.user_row(s, slot, direction) * D + direction) * H + begin);
    }
  }
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
                   const LstmStates<T>& initial, ptrdiff_t layer, ptrdiff_t direction,
                   const LstmOutputs<T>& out, const Poll& poll) {
  const Rows& rows = tape.rows;
  const LstmShape& shape = tape.shape;
  const ptrdiff_t N = rows.batch(), P = rows.total(), H = shape.hidden_size, H_pad = shape.hidden_padded(),
                  D = shape.directions(), pitch = tape.state_pitch();
  const bool top = layer + 1 == shape.num_layers;
  const ptrdiff_t index = layer * D + direction, inputs = shape.layer_inputs(layer);
  const bool full = tape.mode == TapeMode::kFull, half = tape.mode == TapeMode::kHalf;
  LayerTape<T>& own = tape.layers[static_cast<size_t>(index)];
  if (full) own.gates = Buffer<T>(P * tape.gates_pitch());
  if (half) own.gates16 = Buffer<uint16_t>(P * 4 * H_pad);
  if (tape.mode == TapeMode::kLean) own.c_chunks = Buffer<T>(tape.chunks.state(tape.chunks.count()) * pitch);
  own.two_steps = tape.mode == TapeMode::kNone && top;
  own.h = Buffer<T>((N + (own.two_steps ? N : P)) * pitch);
  own.c = Buffer<T>((N + (full || half ? P : 0)) * pitch);

  if (layer == 0 && tape.token_input) {
    // looked up
  } else if (layer > 0 && D == 1 && tape.dropout == 0) {
    own.x = {tape.layers[static_cast<size_t>(layer - 1)].h.data() + N * pitch, pitch};
  } else if (layer == 0 && tape.mode == TapeMode::kNone && direction == 0 && rows.same_as_user()) {
    own.x = {input.x, inputs};
  } else if (full || (layer == 0 && tape.mode != TapeMode::kNone)) {
    own.copy = Buffer<T>(P * row_pitch<T>(inputs));
    own.x = {own.copy.data(), row_pitch<T>(inputs)};
  }
  LayerInput<T> layer_input(w, tape, layer, direction, input.x, input.not_finite);
  LayerRun<T> run{.w = w,
                  .layer = w.layers[static_cast<size_t>(index)],
                  .tape = tape,
                  .own = own,
                  .input = layer_input,
                  .index = layer,
                  .direction = direction,
                  .initial = initial,
                  .out = out,
                  .y = top ? out.y : nullptr,
                  .chunk_gates = Buffer<T>(full ? 0 : tape.chunks.most_rows() * tape.gates_pitch()),
                  .low_h = {LowRows(w.compute, N, H), LowRows(w.compute, N, H)}};
  run_job(layer_threads(N, P, H, inputs), poll, [&](Team& team) { run(team); });
}

template <class T>
std::unique_ptr<Tape<T>> forward(const PackedWeights<T>& w, ptrdiff_t N, ptrdiff_t time,
                                 const int32_t* lengths, const LstmInput<T>& input,
                                 const LstmStates<T>& initial, T dropout, uint64_t seed, TapeMode mode,
                                 const LstmOutputs<T>& out, const Poll& poll) {
  const Rows rows(N, time, lengths);
  // With bfloat16 the order of weight gradients may count rows from the start of a chunk: all tapes have the
  // same.
  const bool long_chunks =
      mode == TapeMode::kLean || (mode != TapeMode::kNone && w.compute == Compute::kBfloat16);
  const ptrdiff_t chunk = std::max(chunk_rows<T>(w.shape, mode), long_chunks ? kLeanSteps * N : 0);
  auto tape = std::make_unique<Tape<T>>(Tape<T>{.shape = w.shape,
                                                .rows = rows,
                                                .mode = mode,
                                                .chunks = Chunks(rows, chunk),
                                                .dropout = dropout,
                                                .seed = seed,
                                                .layers = {},
                                                .tokens = {}});
  const ptrdiff_t D = w.shape.directions();
  tape->layers.resize(static_cast<size_t>(w.shape.num_layers * D));
  if ((tape->token_input = input.tokens != nullptr)) find_tokens(*tape, input);
  for (ptrdiff_t layer = 0; layer < w.shape.num_layers; ++layer)
    for (ptrdiff_t direction = 0; direction < D; ++direction)
      forward_layer(w, *tape, input, initial, layer, direction, out, poll);
  return tape;
}

}  // namespace

template <class T>
void lstm_forward(const PackedWeights<T>& w, ptrdiff_t N, ptrdiff_t time, const int32_t* lengths,
                  const LstmInput<T>& input, const LstmStates<T>& initial, const LstmOutputs<T>& out,
                  const Poll& poll) {
  forward<T>(w, N, time, lengths, input, initial, T(0), 0, TapeMode::kNone, out, poll);
}

template <class T>
std::unique_ptr<Tape<T>> lstm_forward_tape(const PackedWeights<T>& w, ptrdiff_t N, ptrdiff_t time,
                                           const int32_t* lengths, const LstmInput<T>& input,
                                           const LstmStates<T>& initial, T dropout, uint64_t seed,
                                           TapeMode mode, const LstmOutputs<T>& out, const Poll& poll) {
  return forward<T>(w, N, time, lengths, input, initial, dropout, seed, mode, out, poll);
}

#define FUSEDLSTM_INSTANTIATE(T)                                                                             \
  template void lstm_forward(const PackedWeights<T>&, ptrdiff_t, ptrdiff_t, const int32_t*,                  \
                             const LstmInput<T>&, const LstmStates<T>&, const LstmOutputs<T>&, const Poll&); \
  template std::unique_ptr<Tape<T>> lstm_forward_tape(                                                       \
      const PackedWeights<T>&, ptrdiff_t, ptrdiff_t, const int32_t*, const LstmInput<T>&,                    \
      const LstmStates<T>&, T, uint64_t, TapeMode, const LstmOutputs<T>&, const Poll&);
FUSEDLSTM_INSTANTIATE(float)
FUSEDLSTM_INSTANTIATE(double)
#undef FUSEDLSTM_INSTANTIATE

}  // namespace fusedlstm
