// Runs an LSTM of any shape without Python, for perf, callgrind and other tools that look at instructions.
//
//   fusedlstm_run infer|train|stream N T I H L [repeats [threads [level]]]
//
// Prints the seconds of each repetition. `train` is forward with a full tape and backward, without an
// optimiser; `stream` is T steps of N rows, one at a time. float32, random weights and input.
#include "lstm/lstm.h"

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "runtime/cpu.h"
#include "stream/stream.h"

namespace {

using namespace fusedlstm;

std::vector<float> random_values(ptrdiff_t size, float limit) {
  std::vector<float> values(static_cast<size_t>(size));
  uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = limit * (static_cast<float>(state >> 8) / (1 << 23) - 1);
  }
  return values;
}

int run(const std::string& mode, ptrdiff_t N, ptrdiff_t T, ptrdiff_t I, ptrdiff_t H, ptrdiff_t L,
        int repeats) {
  const LstmShape shape{I, H, L, false, true};
  const auto parameters = random_values(parameter_count(shape), 1 / std::sqrt(static_cast<float>(H)));
  const auto x = random_values(N * T * I, 1);
  const auto weights = std::make_shared<const PackedWeights<float>>(
      pack_weights<float>(shape, parameters.data(), mode == "train"));
  std::vector<float> y(static_cast<size_t>(N * T * H)), h_n(static_cast<size_t>(L * N * H)), c_n(h_n.size());
  std::vector<float> gradients(parameters.size()), dx(x.size()), dh0(h_n.size()), dc0(h_n.size());
  const LstmOutputs<float> out{y.data(), h_n.data(), c_n.data()};
  const LstmInput<float> input{x.data(), nullptr, nullptr, 0};
  Stream<float> stream(weights, N);
  for (ptrdiff_t n = 0; n < N; ++n) stream.join(nullptr, nullptr, 0);
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    if (mode == "infer") {
      lstm_forward<float>(*weights, N, T, nullptr, input, {nullptr, nullptr}, out, nullptr);
    } else if (mode == "train") {
      const auto tape = lstm_forward_tape<float>(*weights, N, T, nullptr, input, {nullptr, nullptr}, 0, 0,
                                                 TapeMode::kFull, out, nullptr);
      lstm_backward<float>(*weights, *tape, y.data(), nullptr, nullptr,
                           {gradients.data(), nullptr, dx.data(), dh0.data(), dc0.data()}, nullptr);
    } else if (mode == "stream") {
      for (ptrdiff_t t = 0; t < T; ++t) stream.step(x.data() + t * I, T * I, y.data() + t * H, T * H);
    } else {
      return 2;
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    std::printf("%.6f\n", seconds.count());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  ptrdiff_t sizes[5];
  bool right = argc >= 7 && argc <= 10;
  for (int k = 0; right && k < 5; ++k) right = (sizes[k] = std::atol(argv[2 + k])) > 0;
  try {
    if (right && argc > 8) set_num_threads(std::atoi(argv[8]));
    if (right && argc > 9) set_level(argv[9]);
    const int repeats = right && argc > 7 ? std::atoi(argv[7]) : 3;
    if (right && run(argv[1], sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], repeats) == 0) return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  std::fprintf(stderr, "usage: %s infer|train|stream N T I H L [repeats [threads [level]]]\n", argv[0]);
  return 2;
}
