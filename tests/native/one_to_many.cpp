// Training with outputs fed back, and generation: the same bits for every number of threads.
#include "decode/one_to_many.h"

#include <algorithm>

#include "check.h"

namespace fusedlstm_tests {
namespace {

using namespace fusedlstm;

// Sequences, and units: enough work for several threads, cut by units (few) or by sequences (many).
struct Sizes {
  const char* name;
  ptrdiff_t N, T, H;
};
constexpr Sizes kSizes[] = {{"few", 9, 6, 60}, {"many", 38, 3, 45}};

template <class T>
std::vector<T> train(const Sizes& size, const std::string& mode, int threads) {
  set_num_threads(threads);
  constexpr ptrdiff_t L = 2, V = 23;
  const bool real = mode == "output";
  const ptrdiff_t N = size.N, H = size.H, I = 40, O = real ? I : V, states = L * N * H;
  const LstmShape shape{I, H, L, false, true};
  Values values(7);
  const auto parameters = values.vector<T>(parameter_count(shape)), weight = values.vector<T>(O * H),
             bias = values.vector<T>(O), embedding = values.vector<T>(V * I), first = values.vector<T>(N * I),
             h0 = values.vector<T>(states), c0 = values.vector<T>(states),
             targets = values.vector<T>(N * size.T * O);
  std::vector<int32_t> tokens, lengths;
  for (ptrdiff_t j = 0; j < N * size.T; ++j) tokens.push_back(static_cast<int32_t>(j * 5 % V));
  for (ptrdiff_t n = 0; n < N; ++n)
    lengths.push_back(static_cast<int32_t>(n % 4 == 0 ? n % (size.T + 1) : size.T));
  const auto lstm = std::make_shared<PackedWeights<T>>(pack_weights<T>(shape, parameters.data(), true));
  const PackedLinear<T> output = pack_linear<T>(O, H, weight.data(), bias.data());
  const OneToManyRequest<T> request{.N = N,
                                    .time = size.T,
                                    .lengths = lengths.data(),
                                    .first = first.data(),
                                    .initial = {h0.data(), c0.data()},
                                    .target_values = real ? targets.data() : nullptr,
                                    .target_tokens = real ? nullptr : tokens.data(),
                                    .embedding = real ? nullptr : embedding.data(),
                                    .feedback = real             ? Feedback::kOutput
                                                : mode == "soft" ? Feedback::kSoft
                                                                 : Feedback::kToken,
                                    .teacher_probability = mode == "teacher" ? 1.0 : 0.4,
                                    .temperature = T(1),
                                    .sample = mode == "token",
                                    .dropout = T(0.25),
                                    .seed = 11};
  std::vector<T> y(static_cast<size_t>(N * size.T * O)), all{T(0)};
  std::vector<T> d_parameters(parameters.size()), d_weight(weight.size()), d_bias(bias.size()),
      d_embedding(embedding.size()), d_first(first.size()), dh0(h0.size()), dc0(c0.size());
  const OneToManyGradients<T> gradients{
      d_parameters.data(), d_weight.data(), d_bias.data(), real ? nullptr : d_embedding.data(),
      d_first.data(),      dh0.data(),      dc0.data()};
  all[0] = static_cast<T>(one_to_many<T>(*lstm, output, request, y.data(), &gradients, nullptr));
  for (const std::vector<T>* part :
       {&y, &d_parameters, &d_weight, &d_bias, &d_embedding, &d_first, &dh0, &dc0})
    all.insert(all.end(), part->begin(), part->end());
  if (!real) return all;
  std::vector<T> free(y.size()), h_n(h0.size()), c_n(c0.size());
  one_to_many_generate<T>(lstm, output, N, size.T, first.data(), {h0.data(), c0.data()}, free.data(),
                          h_n.data(), c_n.data(), nullptr);
  for (const std::vector<T>* part : {&free, &h_n, &c_n}) all.insert(all.end(), part->begin(), part->end());
  return all;
}

template <class T>
void test(const Sizes& size, const std::string& mode, int max_threads) {
  const std::vector<T> one = train<T>(size, mode, 1);
  if (max_threads > 1)
    expect(same_bits(one, train<T>(size, mode, max_threads)), std::string("one to many, ") + type_name<T>() +
                                                                  ", " + size.name + ", " + mode +
                                                                  ": other bits with other threads");
}

}  // namespace

// Little in float64, because an emulator runs it.
void test_one_to_many(int max_threads) {
  for (const Sizes& size : kSizes)
    for (const char* mode : {"teacher", "output", "token", "soft"}) test<float>(size, mode, max_threads);
  test<double>(kSizes[0], "output", max_threads);
  set_num_threads(1);
}

}  // namespace fusedlstm_tests
