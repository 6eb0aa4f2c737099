// Several threads of a program in calls at once, as Python threads without the GIL are: they share weights,
// the pool of threads, kept memory, and gradients that they add to in turn.
#include <atomic>
#include <memory>
#include <thread>

#include "check.h"
#include "lstm/lstm.h"
#include "runtime/cpu.h"
#include "runtime/exclusive.h"
#include "runtime/profiler.h"
#include "runtime/threads.h"
#include "stream/stream.h"

namespace fusedlstm_tests {
namespace {

using namespace fusedlstm;

constexpr int kCallers = 4;

template <class Body>
void by_all_callers(const Body& body) {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) callers.emplace_back([&body, caller] { body(caller); });
  for (std::thread& caller : callers) caller.join();
}

// One training pass; what it adds to the gradients is the same every time.
class Pass {
 public:
  Pass()
      : packed_(std::make_shared<const PackedWeights<float>>(
            pack_weights<float>(shape_, Values(1).vector<float>(parameter_count(shape_)).data(), true))),
        x_(Values(2).vector<float>(N * T * I)),
        dy_(Values(3).vector<float>(N * T * H)) {}

  std::vector<float> new_gradients() const {
    return std::vector<float>(static_cast<size_t>(parameter_count(shape_)));
  }
  // Outputs.
  std::vector<float> run(std::vector<float>* gradients) const {
    std::vector<float> y(dy_.size()), h(static_cast<size_t>(2 * N * H)), c(h), dh(h), dc(h), dx(x_.size());
    const auto tape = lstm_forward_tape<float>(*packed_, N, T, nullptr, {.x = x_.data()}, {}, 0.0f, 0,
                                               TapeMode::kFull, {y.data(), h.data(), c.data()}, nullptr);
    const Exclusive turn({{gradients->data(), gradients->size() * sizeof(float)}}, nullptr);
    lstm_backward<float>(*packed_, *tape, dy_.data(), nullptr, nullptr,
                         {gradients->data(), nullptr, dx.data(), dh.data(), dc.data()}, nullptr);
    return y;
  }
  std::vector<float> stream() const {
    std::vector<float> y(dy_.size());
    Stream<float> stream(packed_, N);
    for (ptrdiff_t n = 0; n < N; ++n) stream.join(nullptr, nullptr);
    stream.run(T, x_.data(), y.data(), nullptr);
    return y;
  }

 private:
  static constexpr ptrdiff_t N = 8, T = 6, I = 33, H = 48;
  const LstmShape shape_{I, H, 2, false, true};
  std::shared_ptr<const PackedWeights<float>> packed_;
  std::vector<float> x_, dy_;
};

// Ranges that overlap are held by one call at a time, others by several.
void test_exclusive() {
  constexpr int kRepeats = 200;
  std::vector<int> numbers(4 * kCallers);  // plain: an addition lost is a wrong sum
  by_all_callers([&](int caller) {
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      int* const begin = numbers.data() + repeat % (3 * kCallers);
      const Exclusive turn({{begin, kCallers * sizeof(int)}, {nullptr, 8}, {&caller, 0}}, nullptr);
      for (int k = 0; k < kCallers; ++k) ++begin[k];
    }
  });
  int sum = 0;
  for (const int number : numbers) sum += number;
  expect(sum == kCallers * kRepeats * kCallers, "exclusive: no addition is lost");

  int polls = 0;
  bool interrupted = false;
  const Exclusive turn({{numbers.data(), 8}}, nullptr);
  try {
    const Exclusive second({{numbers.data() + 1, 8}}, [&] { return ++polls == 2; });
  } catch (const Interrupted&) {
    interrupted = true;
  }
  expect(interrupted && polls == 2, "exclusive: a call that waits can be interrupted");
  const Exclusive beside({{numbers.data() + 2, 8}}, nullptr);  // would never return if it were refused
}

}  // namespace

void test_callers(int max_threads) {
  test_exclusive();
  constexpr int kRepeats = 5;
  const Pass pass;
  set_num_threads(1);
  std::vector<float> alone = pass.new_gradients(), together = alone;
  std::vector<float> y;
  for (int repeat = 0; repeat < kCallers * kRepeats; ++repeat) y = pass.run(&alone);
  std::atomic<bool> stop{false};
  std::thread meanwhile([&] {
    for (int count = 0; !stop.load(); ++count) {
      start_profile(count % 2 == 0);
      set_num_threads(1 + count % max_threads);
      set_level(current_level().name);
      std::this_thread::yield();
      stop_profile();
    }
  });
  std::atomic<int> different{0};
  by_all_callers([&](int) {
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      if (!same_bits(pass.run(&together), y)) ++different;
      if (!same_bits(pass.stream(), y)) ++different;
    }
  });
  stop.store(true);
  meanwhile.join();
  expect(different == 0, "callers at the same moment get the outputs that one gets alone");
  expect(same_bits(alone, together), "callers at the same moment add all their gradients");
}

}  // namespace fusedlstm_tests
