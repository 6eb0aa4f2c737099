// Training of decoders with attention on fixed problems: the same bits for any number of threads.
// N sequences, T steps, S source positions, E inputs, M memory size, H hidden units, A keys, O outputs.
#include "check.h"
#include "decode/attention_training.h"

namespace fusedlstm_tests {
namespace {

using namespace fusedlstm;

struct Problem {
  const char* name;
  Attention kind;
  bool feeding, coverage, scheduled;
  ptrdiff_t N, T, S, E, M, H, A, O;
};

// The second is large enough to be shared among threads.
constexpr Problem kProblems[] = {
    {"general, fed", Attention::kGeneral, true, false, false, 5, 4, 19, 3, 7, 18, 18, 9},
    {"concat, coverage", Attention::kConcat, false, true, false, 30, 3, 17, 32, 24, 64, 40, 48},
    {"bahdanau, scheduled", Attention::kBahdanau, false, true, true, 4, 5, 33, 4, 5, 16, 21, 16},
};

template <class T>
void run(const Problem& p, Hash* hash) {
  constexpr ptrdiff_t V = 11, L = 2;
  Values values(static_cast<uint32_t>(p.N * 1000 + p.T));
  const ptrdiff_t fed = p.feeding ? p.O : p.kind == Attention::kBahdanau ? p.M : 0;
  const bool additive = p.kind != Attention::kGeneral;
  const LstmShape shape{p.E + fed, p.H, L, false, true};
  const auto parameters = values.vector<T>(parameter_count(shape));
  const auto output = values.vector<T>(p.O * (p.M + p.H)), key = values.vector<T>(p.A * p.M),
             query = values.vector<T>(p.A * p.H), v = values.vector<T>(p.A), w = values.vector<T>(p.A);
  PackedAttention<T> attention;
  attention.kind = p.kind;
  attention.M = p.M;
  attention.H = p.H;
  attention.A = p.A;
  attention.O = p.O;
  attention.level = &current_level();
  attention.output = pack_linear<T>(p.O, p.M + p.H, output.data(), nullptr);
  attention.key = pack_linear<T>(p.A, p.M, key.data(), nullptr);
  if (additive) {
    attention.query = pack_linear<T>(p.A, p.H, query.data(), nullptr);
    attention.v = Buffer<T>(p.A);
    attention.coverage = Buffer<T>(p.coverage ? p.A : 0);
    std::copy(v.begin(), v.end(), attention.v.data());
    if (p.coverage) std::copy(w.begin(), w.end(), attention.coverage.data());
  }
  const auto x = values.vector<T>(p.N * p.T * p.E), memory = values.vector<T>(p.N * p.S * p.M);
  const auto h0 = values.vector<T>(L * p.N * p.H), c0 = values.vector<T>(L * p.N * p.H);
  const auto dy = values.vector<T>(p.N * p.T * p.O), table = values.vector<T>(V * p.E);
  const auto logits = values.vector<T>(V * p.O);
  const std::vector<double> probability(static_cast<size_t>(p.N * p.T), 0.5);
  std::vector<int32_t> lengths, memory_lengths;
  for (ptrdiff_t n = 0; n < p.N; ++n) {
    lengths.push_back(static_cast<int32_t>(n % (p.T + 1)));
    memory_lengths.push_back(static_cast<int32_t>(1 + n * 7 % p.S));
  }
  ScheduledSampling<T> scheduled;
  if (p.scheduled)
    scheduled = {table.data(),
                 std::make_shared<PackedLinear<T>>(pack_linear<T>(V, p.O, logits.data(), nullptr)),
                 probability.data(), true};
  const AttentionBatch<T> batch{p.N,
                                p.T,
                                p.S,
                                lengths.data(),
                                x.data(),
                                memory.data(),
                                memory_lengths.data(),
                                {h0.data(), c0.data()},
                                p.feeding,
                                static_cast<T>(0.25),
                                1234567890123u,
                                scheduled};
  std::vector<T> y(dy.size()), h_n(h0.size()), c_n(h0.size());
  std::vector<int32_t> tokens(static_cast<size_t>(p.N * p.T));
  AttentionTape<T> tape(std::make_shared<PackedWeights<T>>(pack_weights<T>(shape, parameters.data(), true)),
                        std::make_shared<PackedAttention<T>>(std::move(attention)), batch,
                        {y.data(), h_n.data(), c_n.data(), p.scheduled ? tokens.data() : nullptr}, nullptr);
  std::vector<T> d_lstm(parameters.size()), d_output(output.size()), d_key(key.size()), d_query(query.size()),
      d_v(v.size()), d_w(w.size()), dx(x.size()), d_memory(memory.size()), dh0(h0.size()), dc0(h0.size());
  tape.backward(dy.data(), nullptr, nullptr, memory.data(),
                {d_lstm.data(), d_output.data(), d_key.data(), additive ? d_query.data() : nullptr,
                 additive ? d_v.data() : nullptr, p.coverage ? d_w.data() : nullptr, dx.data(),
                 d_memory.data(), dh0.data(), dc0.data()},
                nullptr);
  hash->add(tokens);
  for (const auto* values_of :
       {&y, &h_n, &c_n, &d_lstm, &d_output, &d_key, &d_query, &d_v, &d_w, &dx, &d_memory, &dh0, &dc0})
    hash->add(*values_of);
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

}  // namespace

void test_attention(const Level& level, int max_threads, std::vector<std::string>* hashes) {
  test_type<float>(level, max_threads, hashes);
  test_type<double>(level, max_threads, hashes);
}

}  // namespace fusedlstm_tests
