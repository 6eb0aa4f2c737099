#include "runtime/low_precision.h"

#include <cstring>

namespace fusedlstm {

LowMatrix low_elements(const LowMatrix& weights, ptrdiff_t K, ptrdiff_t N, ptrdiff_t begin, ptrdiff_t end) {
  const ptrdiff_t n = end - begin;
  // Panels are [k / together][column][together], K and n of them filled up with zeros.
  const auto copy = [&](const auto* from, ptrdiff_t from_panel, auto* to, ptrdiff_t to_panel,
                        ptrdiff_t together) {
    const auto place = [&](ptrdiff_t k, ptrdiff_t column) {
      return k / together * together * kLowPanel + column * together + k % together;
    };
    for (ptrdiff_t panel = 0; panel < N / kLowPanel; ++panel, from += from_panel, to += to_panel)
      for (ptrdiff_t k = 0; k < n; ++k)
        for (ptrdiff_t j = 0; j < kLowPanel; ++j) to[place(k, j)] = from[place(begin + k, j)];
  };
  LowMatrix part;
  if (weights.bf16.size()) {
    part.bf16 = Buffer<uint16_t>::zeros(low_padded(n) * N);
    copy(weights.bf16.data(), low_padded(K) * kLowPanel, part.bf16.data(), low_padded(n) * kLowPanel, 2);
    return part;
  }
  part.int8 = Buffer<int8_t>::zeros(N / kLowPanel * int8_panel(n));
  copy(weights.int8.data(), int8_panel(K), part.int8.data(), int8_panel(n), 4);
  for (int8_t* panel = part.int8.data(); panel < part.int8.data() + part.int8.size();
       panel += int8_panel(n)) {
    int32_t sums[kLowPanel] = {};  // 128 times those of the columns, behind them
    for (ptrdiff_t at = 0; at < low_padded(n) * kLowPanel; ++at) sums[at / 4 % kLowPanel] += 128 * panel[at];
    std::memcpy(panel + low_padded(n) * kLowPanel, sums, sizeof sums);
  }
  part.scale = Buffer<float>(weights.scale.size());
  std::copy_n(weights.scale.data(), weights.scale.size(), part.scale.data());
  return part;
}

}  // namespace fusedlstm
