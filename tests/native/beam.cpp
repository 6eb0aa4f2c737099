// Beam search over a model whose logits depend on every token so far: states move with their hypotheses,
// sources that have ended cost nothing, and no thread changes anything.
#include "decode/beam.h"

#include <algorithm>
#include <cmath>

#include "check.h"
#include "runtime/threads.h"

namespace fusedlstm_tests {
namespace {

using namespace fusedlstm;

constexpr ptrdiff_t kVocabulary = 150;

// A row's state is a hash of its tokens; logits are drawn from it.
template <class T>
class HashRows final : public StepRows<T> {
 public:
  HashRows(const std::vector<uint32_t>& sources, ptrdiff_t capacity)
      : state_(sources), next_(static_cast<size_t>(capacity)) {
    state_.resize(static_cast<size_t>(capacity));
  }
  const Kernels<T>& kernels() const override { return table_of<T>(current_level()); }
  ptrdiff_t vocabulary() const override { return kVocabulary; }
  ptrdiff_t capacity() const override { return static_cast<ptrdiff_t>(state_.size()); }
  void step_share(Team& team, ptrdiff_t count, const int32_t* tokens, T* logits) override {
    if (team.thread() == 0) stepped += count;
    const Share mine = share_of(count, team.thread(), team.threads());
    for (ptrdiff_t j = mine.begin; j < mine.end; ++j) {
      uint32_t& state = state_[static_cast<size_t>(j)];
      state = after(state, tokens[j]);
      write_logits(state, logits + j * kVocabulary);
    }
    team.barrier();
  }
  void gather(ptrdiff_t count, const int32_t* from) override {
    bool in_place = true;
    for (ptrdiff_t j = 0; j < count; ++j) {
      in_place = in_place && from[j] == j;
      next_[static_cast<size_t>(j)] = state_[static_cast<size_t>(from[j])];
    }
    std::swap(state_, next_);
    expect(!in_place, "beam search: rows that stay are not gathered");
  }
  ptrdiff_t state_size(ptrdiff_t) const override { return 1; }
  void save(ptrdiff_t, T*) const override {}
  void load(ptrdiff_t, const T*) override {}

  static uint32_t after(uint32_t state, int32_t token) {
    return (state ^ static_cast<uint32_t>(token + 1)) * 2654435761u;
  }
  // Steep enough for a search; some histories make the stop token 0 likely.
  static void write_logits(uint32_t state, T* logits) {
    Values values(state);
    for (ptrdiff_t j = 0; j < kVocabulary; ++j) logits[j] = static_cast<T>(6 * values.next());
    logits[0] += static_cast<T>(state >> 20 & 3);
  }

  ptrdiff_t stepped = 0;

 private:
  std::vector<uint32_t> state_, next_;
};

constexpr int32_t kStart = 7;

template <class T>
struct Found {
  std::vector<std::vector<Hypothesis<T>>> hypotheses;
  ptrdiff_t stepped;
};

template <class T>
Found<T> search(const std::vector<uint32_t>& sources, const BeamOptions& options) {
  const ptrdiff_t N = static_cast<ptrdiff_t>(sources.size());
  HashRows<T> rows(sources, N * options.width);
  const std::vector<int32_t> start(sources.size(), kStart);
  BeamRequest<T> request{};
  request.N = N;
  request.start_tokens = start.data();
  auto hypotheses = beam_search<T>(rows, request, options, nullptr);
  return {std::move(hypotheses), rows.stepped};
}

template <class T>
bool same(const std::vector<Hypothesis<T>>& a, const std::vector<Hypothesis<T>>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& one, const auto& other) {
    return one.score == other.score && one.tokens == other.tokens &&
           same_bits(one.log_probability, other.log_probability);
  });
}

// Log-probabilities of the tokens, by the model alone.
template <class T>
double replay_error(uint32_t source, const Hypothesis<T>& hypothesis) {
  uint32_t state = HashRows<T>::after(source, kStart);
  double error = 0;
  std::vector<T> logits(kVocabulary);
  for (size_t t = 0; t < hypothesis.tokens.size(); ++t) {
    HashRows<T>::write_logits(state, logits.data());
    double sum = 0;
    for (const T z : logits) sum += std::exp(static_cast<double>(z));
    const size_t token = static_cast<size_t>(hypothesis.tokens[t]);
    const double expected = static_cast<double>(logits[token]) - std::log(sum);
    error = std::max(error, std::abs(static_cast<double>(hypothesis.log_probability[t]) - expected));
    state = HashRows<T>::after(state, hypothesis.tokens[t]);
  }
  return error;
}

template <class T>
void test_type(int max_threads) {
  const std::string name = std::string("beam search ") + type_name<T>() + ": ";
  const std::vector<uint32_t> sources{11, 222, 3333, 44444, 5, 66, 777};
  BeamOptions options;
  options.width = options.num_return = 6;
  options.max_new_tokens = 30;
  options.constraints.stop_tokens = {0};
  for (const ptrdiff_t groups : {1, 3}) {
    options.groups = groups;
    options.diversity_strength = groups > 1 ? 0.5 : 0;
    set_num_threads(max_threads);
    const Found<T> together = search<T>(sources, options);
    set_num_threads(1);
    const Found<T> one_thread = search<T>(sources, options);
    ptrdiff_t stepped = 0, shortest = options.max_new_tokens, longest = 0;
    double error = 0;
    for (size_t n = 0; n < sources.size(); ++n) {
      const Found<T> alone = search<T>({sources[n]}, options);
      stepped += alone.stepped;
      const auto& hypotheses = together.hypotheses[n];
      expect(same(hypotheses, alone.hypotheses[0]), name + "a source's result is the same alone");
      expect(same(hypotheses, one_thread.hypotheses[n]), name + "threads change nothing");
      for (const Hypothesis<T>& one : hypotheses) {
        error = std::max(error, replay_error(sources[n], one));
        shortest = std::min(shortest, static_cast<ptrdiff_t>(one.tokens.size()));
        longest = std::max(longest, static_cast<ptrdiff_t>(one.tokens.size()));
      }
    }
    expect(together.stepped == stepped, name + "sources that have ended cost nothing");
    expect(shortest + 3 < longest, name + "hypotheses end at different steps");
    expect(error < (sizeof(T) == 4 ? 5e-6 : 1e-13),
           name + "states follow their hypotheses, error " + std::to_string(error));
  }
}

}  // namespace

void test_beam_search(int max_threads) {
  test_type<float>(max_threads);
  test_type<double>(max_threads);
}

}  // namespace fusedlstm_tests
