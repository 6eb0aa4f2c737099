// Forward and backward of whole LSTMs on fixed problems: the same bits for any number of threads.
// N sequences, T steps, I inputs, H hidden units, L layers, D directions, V token ids.
#include "lstm/lstm.h"

#include <algorithm>

#include "check.h"
#include "lstm/stepwise.h"
#include "runtime/threads.h"
#include "stream/stream.h"

namespace fusedlstm_tests {
namespace {

using namespace fusedlstm;

struct Problem {
  const char* name;
  ptrdiff_t N, T, I, H, L;
  bool bidirectional, ragged;
  double dropout;
  ptrdiff_t V;  // 0: dense input
};

// Many sequences are shared out by sequence, few by hidden unit; weight gradients are summed over more than
// one block of rows. Small, because an emulator runs them.
constexpr Problem kProblems[] = {
    {"few sequences", 5, 9, 7, 35, 2, true, true, 0.25, 0},
    {"many sequences", 49, 4, 17, 21, 1, false, true, 0.0, 0},
    {"token input", 9, 6, 18, 37, 2, false, false, 0.5, 11},
    {"long reduction", 3, 140, 4, 16, 1, true, false, 0.0, 0},
};

std::vector<int32_t> integers(ptrdiff_t size, int32_t below, uint32_t seed) {
  Values values(seed);
  std::vector<int32_t> result(static_cast<size_t>(size));
  for (int32_t& value : result) value = static_cast<int32_t>((values.next() + 1) / 2 * below);
  return result;
}

// One training pass. Adds all outputs and gradients to `hash`.
template <class T>
void run(const Problem& p, Hash* hash) {
  const LstmShape shape{p.I, p.H, p.L, p.bidirectional, true};
  const ptrdiff_t outputs = p.N * p.T * shape.outputs(), states = p.L * shape.directions() * p.N * p.H;
  Values values(static_cast<uint32_t>(p.N * 1000 + p.T));
  const auto parameters = values.vector<T>(parameter_count(shape));
  const auto x = values.vector<T>(p.N * p.T * p.I), embedding = values.vector<T>(p.V * p.I);
  const auto h0 = values.vector<T>(states), c0 = values.vector<T>(states);
  const auto dy = values.vector<T>(outputs), dh_n = values.vector<T>(states), dc_n = values.vector<T>(states);
  std::vector<int32_t> lengths = integers(p.N, static_cast<int32_t>(p.T + 1), 3);  // 0 and T included
  lengths[0] = 0;
  const std::vector<int32_t> tokens = integers(p.N * p.T, static_cast<int32_t>(p.V), 4);
  const int32_t* const given_lengths = p.ragged ? lengths.data() : nullptr;

  const auto packed = pack_weights<T>(shape, parameters.data(), true);
  LstmInput<T> input{.x = x.data()};
  if (p.V) input = {.tokens = tokens.data(), .embedding = embedding.data()};
  std::vector<T> y(static_cast<size_t>(outputs)), h_n(h0.size()), c_n(c0.size());
  const auto tape = lstm_forward_tape<T>(packed, p.N, p.T, given_lengths, input, {h0.data(), c0.data()},
                                         static_cast<T>(p.dropout), 1234567890123u, TapeMode::kFull,
                                         {y.data(), h_n.data(), c_n.data()}, nullptr);
  if (p.dropout == 0) {
    std::vector<T> y_inference(y.size()), h_inference(h_n.size()), c_inference(c_n.size());
    lstm_forward<T>(packed, p.N, p.T, given_lengths, input, {h0.data(), c0.data()},
                    {y_inference.data(), h_inference.data(), c_inference.data()}, nullptr);
    expect(same_bits(y, y_inference) && same_bits(h_n, h_inference) && same_bits(c_n, c_inference),
           std::string(p.name) + ": inference and training forward differ");
  }
  auto gradients = values.vector<T>(static_cast<ptrdiff_t>(parameters.size()));  // added to
  auto d_embedding = values.vector<T>(static_cast<ptrdiff_t>(embedding.size()));
  std::vector<T> dx(p.V ? 0 : x.size()), dh0(h0.size()), dc0(c0.size());
  lstm_backward<T>(packed, *tape, dy.data(), dh_n.data(), dc_n.data(),
                   {gradients.data(), p.V ? d_embedding.data() : nullptr, p.V ? nullptr : dx.data(),
                    dh0.data(), dc0.data()},
                   nullptr);
  for (const auto* values_of : {&y, &h_n, &c_n, &gradients, &d_embedding, &dx, &dh0, &dc0})
    hash->add(*values_of);
}

// The same training pass step by step: the bits of whole sequences.
template <class T>
void run_stepwise(const Problem& p, ptrdiff_t ahead, int threads, Compute compute) {
  const LstmShape shape{p.I, p.H, p.L, false, true};
  const ptrdiff_t states = p.L * p.N * p.H;
  Values values(static_cast<uint32_t>(p.N * 1000 + p.T));
  const auto parameters = values.vector<T>(parameter_count(shape)), x = values.vector<T>(p.N * p.T * p.I);
  const auto h0 = values.vector<T>(states), c0 = values.vector<T>(states);
  const auto dy = values.vector<T>(p.N * p.T * p.H), dh_n = values.vector<T>(states),
             dc_n = values.vector<T>(states);
  std::vector<int32_t> lengths = integers(p.N, static_cast<int32_t>(p.T + 1), 3);
  lengths[0] = 0;
  const auto packed = pack_weights<T>(shape, parameters.data(), true, compute);
  const T dropout = static_cast<T>(p.dropout);
  struct Pass {
    std::vector<T> y, h_n, c_n, gradients, dx, dh0, dc0;
  } whole, stepped;
  for (Pass* pass : {&whole, &stepped})
    *pass = {std::vector<T>(dy.size()),         std::vector<T>(h0.size()), std::vector<T>(h0.size()),
             std::vector<T>(parameters.size()), std::vector<T>(x.size()),  std::vector<T>(h0.size()),
             std::vector<T>(h0.size())};
  const auto tape = lstm_forward_tape<T>(packed, p.N, p.T, lengths.data(), {.x = x.data()},
                                         {h0.data(), c0.data()}, dropout, 77, TapeMode::kFull,
                                         {whole.y.data(), whole.h_n.data(), whole.c_n.data()}, nullptr);
  lstm_backward<T>(packed, *tape, dy.data(), dh_n.data(), dc_n.data(),
                   {whole.gradients.data(), nullptr, whole.dx.data(), whole.dh0.data(), whole.dc0.data()},
                   nullptr);

  const Rows rows(p.N, p.T, lengths.data());
  const auto pack = [&](const std::vector<T>& from, ptrdiff_t n) {
    std::vector<T> to(static_cast<size_t>(rows.total() * n));
    for (ptrdiff_t s = 0; s < rows.steps(); ++s)
      for (ptrdiff_t slot = 0; slot < rows.active(s); ++slot)
        std::copy_n(from.data() + rows.user_row(s, slot, 0) * n, n, to.data() + (rows.start(s) + slot) * n);
    return to;
  };
  const auto unpack = [&](const T* from, ptrdiff_t pitch, ptrdiff_t s, ptrdiff_t n, std::vector<T>* to) {
    for (ptrdiff_t slot = 0; slot < rows.active(s); ++slot)
      std::copy_n(from + slot * pitch, n, to->data() + rows.user_row(s, slot, 0) * n);
  };
  const std::vector<T> x_rows = pack(x, p.I), dy_rows = pack(dy, p.H);
  std::vector<T> dx_rows(x_rows.size());
  Stepwise<T> steps(packed, rows, {h0.data(), c0.data()}, dropout, 77, threads, ahead);
  run_job(threads, nullptr, [&](Team& team) {
    if (ahead > 0) steps.input_ahead_share(team, {x_rows.data(), p.I});
    for (ptrdiff_t s = 0; s < rows.steps(); ++s)
      steps.forward_share(team, s, {x_rows.data() + rows.start(s) * p.I, p.I});
  });
  steps.final_states(stepped.h_n.data(), stepped.c_n.data());
  steps.begin_backward(dh_n.data(), dc_n.data());
  run_job(threads, nullptr, [&](Team& team) {
    for (ptrdiff_t s = rows.steps() - 1; s >= 0; --s)
      steps.backward_share(team, s, {dy_rows.data() + rows.start(s) * p.H, p.H},
                           dx_rows.data() + rows.start(s) * p.I, p.I);
    if (ahead > 0) steps.input_ahead_gradients_share(team, dx_rows.data(), p.I);
    steps.weight_gradients_share(team, {x_rows.data(), p.I}, stepped.gradients.data());
  });
  steps.initial_gradients(stepped.dh0.data(), stepped.dc0.data());
  for (ptrdiff_t s = 0; s < rows.steps(); ++s) {
    unpack(steps.h(s).data, steps.h(s).pitch, s, p.H, &stepped.y);
    unpack(dx_rows.data() + rows.start(s) * p.I, p.I, s, p.I, &stepped.dx);
  }
  const std::string what = std::string(p.name) + " stepwise " +
                           (compute == Compute::kFull ? type_name<T>() : "bf16") + ", " +
                           std::to_string(threads) + " threads, " + std::to_string(ahead) + " ahead: ";
  expect(same_bits(whole.y, stepped.y), what + "y");
  expect(same_bits(whole.h_n, stepped.h_n) && same_bits(whole.c_n, stepped.c_n), what + "final states");
  expect(same_bits(whole.dx, stepped.dx), what + "dx");
  expect(same_bits(whole.gradients, stepped.gradients), what + "gradients");
  expect(same_bits(whole.dh0, stepped.dh0) && same_bits(whole.dc0, stepped.dc0), what + "initial gradients");
}

// Training in bfloat16 at a level that may have to be emulated: the layout of the packed weights is the same
// on all AVX-512 levels. Outputs and gradients of `threads` threads.
std::vector<std::vector<float>> run_bf16(const Problem& p, const Level& level, int threads) {
  set_num_threads(threads);
  const LstmShape shape{p.I, p.H, p.L, p.bidirectional, true};
  Values values(static_cast<uint32_t>(p.N * 1000 + p.T));
  const auto parameters = values.vector<float>(parameter_count(shape));
  const auto x = values.vector<float>(p.N * p.T * p.I),
             dy = values.vector<float>(p.N * p.T * shape.outputs());
  std::vector<int32_t> lengths = integers(p.N, static_cast<int32_t>(p.T + 1), 3);
  const int32_t* const given_lengths = p.ragged ? lengths.data() : nullptr;
  auto packed = pack_weights<float>(shape, parameters.data(), true, Compute::kBfloat16);
  packed.level = &level;
  const ptrdiff_t states = p.L * shape.directions() * p.N * p.H;
  std::vector<float> y(dy.size()), h_n(static_cast<size_t>(states)), c_n(h_n), dh0(h_n), dc0(h_n),
      dx(x.size());
  const auto tape = lstm_forward_tape<float>(packed, p.N, p.T, given_lengths, {.x = x.data()}, {}, 0.0f, 0,
                                             TapeMode::kFull, {y.data(), h_n.data(), c_n.data()}, nullptr);
  std::vector<float> gradients(parameters.size());
  lstm_backward<float>(packed, *tape, dy.data(), nullptr, nullptr,
                       {gradients.data(), nullptr, dx.data(), dh0.data(), dc0.data()}, nullptr);
  return {y, h_n, c_n, gradients, dx, dh0, dc0};
}

template <class T>
void test_type(const Level& level, int max_threads, std::vector<std::string>* hashes) {
  for (const Problem& p : kProblems) {
    uint64_t first = 0;
    for (const int threads : thread_counts(max_threads)) {
      set_num_threads(threads);
      Hash hash;
      run<T>(p, &hash);
      if (threads == 1) first = hash.value();
      expect(hash.value() == first, std::string(level.name) + " " + type_name<T>() + " " + p.name + ": " +
                                        std::to_string(threads) + " threads compute other bits than one");
    }
    char text[20];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(first));
    hashes->push_back(std::string(type_name<T>()) + " " + text + " " + p.name);
  }
}

// Steps of a stream are the sequence: one row, two, and as many as take a product of their own.
template <class T>
void test_stream(const Level& level) {
  const ptrdiff_t time = 4, I = 7, L = 2;
  for (const ptrdiff_t H : {16, 35}) {
    for (const ptrdiff_t N : {1, 2, 5}) {
      const LstmShape shape{I, H, L, false, true};
      Values values(static_cast<uint32_t>(100 * H + N));
      const auto parameters = values.vector<T>(parameter_count(shape));
      const auto x = values.vector<T>(N * time * I);
      const auto packed =
          std::make_shared<const PackedWeights<T>>(pack_weights(shape, parameters.data(), false));
      std::vector<T> y(static_cast<size_t>(N * time * H)), y_stream(y.size());
      std::vector<T> h(static_cast<size_t>(L * N * H)), c(h.size());
      lstm_forward<T>(*packed, N, time, nullptr, {.x = x.data()}, {}, {y.data(), h.data(), c.data()},
                      nullptr);
      Stream<T> stream(packed, N);
      for (ptrdiff_t n = 0; n < N; ++n) stream.join(nullptr, nullptr);
      stream.run(time, x.data(), y_stream.data(), nullptr);
      expect(same_bits(y, y_stream), std::string(level.name) + " " + type_name<T>() + ": a stream of " +
                                         std::to_string(N) + " rows differs from the sequence");
    }
  }
}

}  // namespace

void test_lstm_bf16(const Level& level, const Level& widening, int max_threads) {
  for (const Problem& p : {kProblems[0], kProblems[1]}) {
    const auto one = run_bf16(p, level, 1), more = run_bf16(p, level, max_threads),
               widened = run_bf16(p, widening, 1);
    double error = 0;
    bool same = true;
    for (size_t k = 0; k < one.size(); ++k) {
      same = same && same_bits(one[k], more[k]);
      double largest = 1;
      for (const float value : widened[k]) largest = std::max(largest, std::abs(static_cast<double>(value)));
      for (size_t j = 0; j < one[k].size(); ++j)
        error = std::max(error, std::abs(static_cast<double>(one[k][j] - widened[k][j])) / largest);
    }
    const std::string what = std::string(level.name) + " bf16 " + p.name;
    expect(same, what + ": " + std::to_string(max_threads) + " threads compute other bits than one");
    // another order of the same sums; an h or dA near the middle of two bfloat16 numbers may go the other way
    expect(error < 5e-3, what + ": differs by " + std::to_string(error) + " from the widening products");
  }
}

void test_lstm(const Level& level, int max_threads, std::vector<std::string>* hashes) {
  test_type<float>(level, max_threads, hashes);
  test_type<double>(level, max_threads, hashes);
  test_stream<float>(level);
  test_stream<double>(level);
  for (const Problem& p : {kProblems[0], kProblems[1], Problem{"one unit", 1, 3, 2, 1, 1, false, false, 0, 0},
                           Problem{"many inputs", 5, 3, 70, 40, 2, false, true, 0, 0}}) {
    for (const int threads : thread_counts(max_threads)) {
      for (const ptrdiff_t ahead : {ptrdiff_t{0}, p.I / 2, p.I}) {
        run_stepwise<float>(p, ahead, threads, Compute::kFull);
        run_stepwise<double>(p, ahead, threads, Compute::kFull);
        run_stepwise<float>(p, ahead, threads, Compute::kBfloat16);
      }
    }
  }
}

}  // namespace fusedlstm_tests
