#include "runtime/ceilings.h"

#include <algorithm>
#include <chrono>
#include <type_traits>
#include <vector>

namespace fusedlstm {
namespace {

// The best of some trials of the amount of work per second: work() does some on its thread and says how much.
template <class GetWork>
double best_rate(const Poll& poll, const GetWork& make_work) {
  constexpr int kTrials = 4;
  constexpr double kSeconds = 0.02;
  using Clock = std::chrono::steady_clock;
  double best = 0;
  std::vector<double> done(static_cast<size_t>(num_threads())), seconds(done.size());
  run_job(static_cast<int>(done.size()), poll, [&](Team& team) {
    auto work = make_work();
    work();  // memory is there, caches are filled
    for (int trial = 0; trial < kTrials; ++trial) {
      team.barrier();
      const auto begin = Clock::now();
      const auto since = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
      double sum = 0, elapsed = 0;
      for (; elapsed < kSeconds; elapsed = since()) {
        sum += work();
        team.poll();
      }
      done[static_cast<size_t>(team.thread())] = sum;
      seconds[static_cast<size_t>(team.thread())] = elapsed;
      team.barrier();
      if (team.thread() > 0) continue;
      double rate = 0;
      for (int t = 0; t < team.threads(); ++t)
        rate += done[static_cast<size_t>(t)] / seconds[static_cast<size_t>(t)];
      best = std::max(best, rate);
    }
  });
  return best;
}

// A product of operands that fit the first-level cache together.
struct SmallProduct {
  static constexpr ptrdiff_t M = 48, N = 64, K = 128;
  static constexpr double flops = 2.0 * M * N * K;
};

}  // namespace

template <class T>
double peak_flops(Compute compute, const Poll& poll) {
  const Level& level = current_level();
  using Small = SmallProduct;
  if (compute == Compute::kFull) {
    const Kernels<T>& kernels = kernels_of<T>(level);
    return best_rate(poll, [&] { return [&] { return kernels.multiply_adds(1 << 10); }; });
  }
  if (compute == Compute::kBfloat16)
    return best_rate(poll, [&] {
      return [&level, a = Buffer<uint16_t>::zeros(Small::M * Small::K),
              b = Buffer<uint16_t>::zeros(Small::K * Small::N),
              c = Buffer<float>(Small::M * Small::N)]() mutable {
        level.bf16.gemm({.M = Small::M,
                         .N = Small::N,
                         .K = Small::K,
                         .a = a.data(),
                         .a_row = Small::K,
                         .b = b.data(),
                         .b_panel = Small::K * kLowPanel,
                         .init = nullptr,
                         .init_row = 0,
                         .c = c.data(),
                         .c_row = Small::N});
        return Small::flops;
      };
    });
  return best_rate(poll, [&] {
    return [&level, a = Buffer<int8_t>::zeros(Small::M * Small::K),
            b = Buffer<int8_t>::zeros(Small::N / kLowPanel * int8_panel(Small::K)),
            c = Buffer<float>(Small::M * Small::N), zeros = Buffer<float>::zeros(Small::N)]() mutable {
      level.int8.gemm({.M = Small::M,
                       .N = Small::N,
                       .K = Small::K,
                       .a = a.data(),
                       .a_row = Small::K,
                       .b = b.data(),
                       .b_panel = int8_panel(Small::K),
                       .init = zeros.data(),
                       .init_row = 0,
                       .c = c.data(),
                       .c_row = Small::N,
                       .column_scale = zeros.data(),
                       .row_scale = nullptr});
      return Small::flops;
    };
  });
}

double read_bandwidth(ptrdiff_t bytes, const Poll& poll) {
  const Kernels<float>& kernels = kernels_of<float>(current_level());
  const ptrdiff_t n = bytes / static_cast<ptrdiff_t>(sizeof(float));
  // A large buffer in pieces, for Ctrl-C; a small one many times, or to read the clock takes as long.
  static constexpr ptrdiff_t at_once = 1 << 18;
  const ptrdiff_t passes = std::max<ptrdiff_t>(1, at_once / std::max<ptrdiff_t>(1, n));
  return best_rate(poll, [&] {
    return [&kernels, n, passes, at = ptrdiff_t{0}, buffer = Buffer<float>::zeros(n)]() mutable {
      const ptrdiff_t piece = std::min(n - at, at_once);
      for (ptrdiff_t pass = 0; pass < passes; ++pass) kernels.read(piece, buffer.data() + at);
      at = at + piece < n ? at + piece : 0;
      return static_cast<double>(passes * piece) * sizeof(float);
    };
  });
}

template double peak_flops<float>(Compute, const Poll&);
template double peak_flops<double>(Compute, const Poll&);

}  // namespace fusedlstm
