// The bfloat16 products of one level against scalar code, bit for bit, in the order that the level documents.
#include <algorithm>

#include "check.h"

namespace fusedlstm_tests {
namespace {

using namespace fusedlstm;

float widen(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

// Rounding as arithmetic: of the two neighbours the nearer one, or the one with the even last bit.
uint16_t nearest(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  const uint16_t low = static_cast<uint16_t>(bits >> 16), high = static_cast<uint16_t>(low + 1);
  if (std::isinf(x)) return low;
  // beyond the largest finite number the next one counts as 2^128
  const auto value = [](uint16_t b) {
    const double v = static_cast<double>(widen(b));
    return std::isinf(v) ? std::copysign(0x1p128, v) : v;
  };
  const double below = std::abs(value(low) - static_cast<double>(x)),
               above = std::abs(value(high) - static_cast<double>(x));
  return below < above || (below == above && low % 2 == 0) ? low : high;
}

// c + sum over k < K of a[k] b[k], in the order of the level.
float product_of(const std::string& level, ptrdiff_t K, const uint16_t* a, const auto& b, float c) {
  const auto term = [&](ptrdiff_t k, float sum) {
    return k < K ? std::fma(widen(a[k]), widen(b(k)), sum) : sum;
  };
  if (level == "amx") {
    for (ptrdiff_t k0 = 0; k0 < K; k0 += 32) {
      float even = 0, odd = 0;
      for (ptrdiff_t k = k0; k < k0 + 32; k += 2) even = term(k, even), odd = term(k + 1, odd);
      c = c + (even + odd);
    }
  } else if (level == "avx512_bf16") {
    for (ptrdiff_t k = 0; k < K; k += 2) c = term(k, term(k + 1, c));
  } else {
    for (ptrdiff_t k = 0; k < K; ++k) c = term(k, c);
  }
  return c;
}

std::vector<uint16_t> rounded_rows(const Level& level, ptrdiff_t rows, ptrdiff_t n,
                                   const std::vector<float>& x) {
  std::vector<uint16_t> y(static_cast<size_t>(rows * low_padded(n)), 0xffff);
  level.bf16.round_rows(rows, n, low_padded(n), x.data(), n, y.data(), low_padded(n));
  return y;
}

void test_rounding(const Level& level) {
  std::vector<float> x;
  for (uint32_t bits = 0; bits < 0xffff0000u; bits += 0x6789) x.push_back(std::bit_cast<float>(bits));
  for (const uint32_t high : {0x3f80u, 0x3f81u, 0x7f7fu, 0x0000u, 0x8000u, 0xff7fu, 0x7f80u, 0xff80u})
    for (const uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      x.push_back(std::bit_cast<float>(high << 16 | low));
  const ptrdiff_t n = static_cast<ptrdiff_t>(x.size());
  std::vector<uint16_t> expected(static_cast<size_t>(low_padded(n)), 0);
  std::transform(x.begin(), x.end(), expected.begin(), nearest);
  expect(same_bits(rounded_rows(level, 1, n, x), expected), std::string(level.name) + " bf16 round_rows");
}

void test_gemm(const Level& level, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int init_kind) {
  Values values(static_cast<uint32_t>(M * 10007 + N * 101 + K));
  const auto a = rounded_rows(level, M, K, values.vector<float>(M * K));
  const auto b = values.vector<float>(N * K), init = values.vector<float>(std::max(M, ptrdiff_t{1}) * N);
  std::vector<uint16_t> panels(static_cast<size_t>(low_packed_size(K, N)), 0xffff);
  // B comes transposed, as (N, K)
  level.bf16.pack(K, N, b.data(), K, fusedlstm::SourceBy::kColumns, {}, panels.data(), bf16_layout(K));
  std::vector<float> by_rows(b.size());
  for (ptrdiff_t k = 0; k < K; ++k)
    for (ptrdiff_t n = 0; n < N; ++n)
      by_rows[static_cast<size_t>(k * N + n)] = b[static_cast<size_t>(n * K + k)];
  std::vector<uint16_t> the_same(panels.size(), 0xffff);
  level.bf16.pack(K, N, by_rows.data(), N, fusedlstm::SourceBy::kRows, {}, the_same.data(), bf16_layout(K));
  expect(same_bits(panels, the_same),
         std::string(level.name) + " bf16 pack of rows N=" + std::to_string(N) + " K=" + std::to_string(K));
  const ptrdiff_t c_row = N + 3, init_row = init_kind == 2 ? N : 0;
  std::vector<float> c = values.vector<float>(M * c_row), expected = c;
  level.bf16.gemm({.M = M,
                   .N = N,
                   .K = K,
                   .a = a.data(),
                   .a_row = low_padded(K),
                   .b = panels.data(),
                   .b_panel = low_padded(K) * kLowPanel,
                   .init = init_kind ? init.data() : nullptr,
                   .init_row = init_row,
                   .c = c.data(),
                   .c_row = c_row});
  for (ptrdiff_t m = 0; m < M; ++m)
    for (ptrdiff_t n = 0; n < N; ++n)
      expected[static_cast<size_t>(m * c_row + n)] = product_of(
          level.name, K, a.data() + m * low_padded(K),
          [&](ptrdiff_t k) { return nearest(b[static_cast<size_t>(n * K + k)]); },
          init_kind ? init[static_cast<size_t>(m * init_row + n)] : 0.0f);
  expect(same_bits(c, expected), std::string(level.name) + " bf16 gemm M=" + std::to_string(M) +
                                     " N=" + std::to_string(N) + " K=" + std::to_string(K));
}

// Panels of three groups of rows, each padded with zero rows; the rows as columns of B, and as its rows.
void test_pack(const Level& level, ptrdiff_t rows, ptrdiff_t n) {
  const ptrdiff_t padded = (rows + 15) / 16 * 16, all = 3 * padded;
  const auto source = Values(static_cast<uint32_t>(rows * 101 + n)).vector<float>(3 * rows * n);
  const auto element = [&](ptrdiff_t row, ptrdiff_t j) {
    const ptrdiff_t r = row % padded;
    const bool there = row < all && r < rows && j < n;
    return there ? nearest(source[static_cast<size_t>((row / padded * rows + r) * n + j)]) : uint16_t{0};
  };
  for (const bool columns : {true, false}) {
    const ptrdiff_t K = columns ? n : all, N = columns ? all : n;
    std::vector<uint16_t> panels(static_cast<size_t>(low_packed_size(K, N)), 0xffff), expected = panels;
    level.bf16.pack(K, N, source.data(), n,
                    columns ? fusedlstm::SourceBy::kColumns : fusedlstm::SourceBy::kRows, {rows, padded},
                    panels.data(), bf16_layout(K));
    for (ptrdiff_t c = 0; c < (N + kLowPanel - 1) / kLowPanel * kLowPanel; ++c)
      for (ptrdiff_t k = 0; k < low_padded(K); ++k)
        expected[static_cast<size_t>(c / kLowPanel * low_padded(K) * kLowPanel + k / 2 * 2 * kLowPanel +
                                     c % kLowPanel * 2 + k % 2)] = columns ? element(c, k) : element(k, c);
    expect(same_bits(panels, expected), std::string(level.name) + " bf16 pack of " +
                                            (columns ? "columns" : "rows") + " in groups of " +
                                            std::to_string(rows) + ", n=" + std::to_string(n));
  }
}

// The blocks of units of a recurrent product, added to in place: of the four panels of each that lie apart,
// one; of those side by side all, from the last to the first or from the first on.
void test_gemm_panels(const Level& level, ptrdiff_t M, ptrdiff_t K, bool side_by_side, bool descending) {
  constexpr ptrdiff_t H_pad = 48, blocks = H_pad / kLowPanel;
  Values values(static_cast<uint32_t>(M * 131 + K));
  const auto a = rounded_rows(level, M, K, values.vector<float>(M * K));
  const auto b = values.vector<float>(4 * H_pad * K);
  std::vector<uint16_t> panels(static_cast<size_t>(low_packed_size(K, 4 * H_pad)));
  const LowLayout one = bf16_layout(K), layout = side_by_side ? four_gates(one) : one;
  const ptrdiff_t next_gate = side_by_side ? one.step : blocks * one.panel;
  for (ptrdiff_t gate = 0; gate < 4; ++gate)
    level.bf16.pack(K, H_pad, b.data() + gate * H_pad * K, K, fusedlstm::SourceBy::kColumns, {},
                    panels.data() + gate * next_gate, layout);
  std::vector<float> c = values.vector<float>(M * 4 * H_pad), expected = c;
  const ptrdiff_t first = side_by_side && !descending ? 0 : blocks - 1, direction = descending ? -1 : 1;
  level.bf16.gemm({.M = M,
                   .N = 4 * kLowPanel,
                   .K = K,
                   .a = a.data(),
                   .a_row = low_padded(K),
                   .b = panels.data() + first * layout.panel,
                   .b_panel = next_gate,
                   .init = c.data() + first * kLowPanel,
                   .init_row = 4 * H_pad,
                   .c = c.data() + first * kLowPanel,
                   .c_row = 4 * H_pad,
                   .b_step = layout.step,
                   .c_panel = H_pad,
                   .blocks = side_by_side ? blocks : 1,
                   .b_block = direction * layout.panel,
                   .c_block = direction * kLowPanel});
  for (ptrdiff_t m = 0; m < M; ++m)
    for (ptrdiff_t n = 0; n < 4 * H_pad; ++n)
      if (side_by_side || n % H_pad / kLowPanel == first)
        expected[static_cast<size_t>(m * 4 * H_pad + n)] = product_of(
            level.name, K, a.data() + m * low_padded(K),
            [&](ptrdiff_t k) { return nearest(b[static_cast<size_t>(n * K + k)]); },
            expected[static_cast<size_t>(m * 4 * H_pad + n)]);
  expect(same_bits(c, expected),
         std::string(level.name) + " bf16 gemm of unit blocks, M=" + std::to_string(M) + " K=" +
             std::to_string(K) + (side_by_side ? ", side by side" : "") + (descending ? ", descending" : ""));
}

// C += A^T B over gathered rows, in their order, and another product of the same A beside it. A second time
// with what the first has packed: B itself is not read then.
void test_gemm_transposed(const Level& level, ptrdiff_t M, ptrdiff_t N, ptrdiff_t R, bool gathered) {
  Values values(static_cast<uint32_t>(M * 10007 + N * 101 + R));
  const ptrdiff_t also_N = gathered ? N % 40 + 3 : 0;
  const auto a = rounded_rows(level, R, M, values.vector<float>(R * M));
  auto b = rounded_rows(level, R, N, values.vector<float>(R * N));
  auto also_b = rounded_rows(level, R, also_N, values.vector<float>(R * also_N));
  std::vector<int32_t> rows(static_cast<size_t>(R));
  for (ptrdiff_t r = 0; r < R; ++r) rows[static_cast<size_t>(r)] = static_cast<int32_t>((r * 7 + 3) % R);
  std::vector<float> c = values.vector<float>(M * N), expected = c;
  std::vector<float> also_c = values.vector<float>(M * also_N), also_expected = also_c;
  const auto before_b = b, before_also_b = also_b;
  std::vector<uint16_t> scratch(static_cast<size_t>(transposed_scratch_bf16(N, also_N)));
  GemmTransposedBf16 product{
      .M = M,
      .R = R,
      .a = a.data(),
      .a_row = low_padded(M),
      .a_rows = gathered ? rows.data() : nullptr,
      .side = {N, b.data(), low_padded(N), nullptr, c.data(), N},
      .scratch = scratch.data(),
      .also = {also_N, also_b.data(), low_padded(also_N), rows.data(), also_c.data(), also_N}};
  level.bf16.gemm_transposed(product);
  const bool again = R <= kReductionBlock;
  if (again) {
    std::fill(b.begin(), b.end(), uint16_t{0x7fc0});  // NaN
    std::fill(also_b.begin(), also_b.end(), uint16_t{0x7fc0});
    product.packed = true;
    level.bf16.gemm_transposed(product);
  }
  const auto row = [&](ptrdiff_t r) { return static_cast<ptrdiff_t>(rows[static_cast<size_t>(r)]); };
  std::vector<uint16_t> column(static_cast<size_t>(R));
  for (ptrdiff_t m = 0; m < M; ++m) {
    for (ptrdiff_t r = 0; r < R; ++r)
      column[static_cast<size_t>(r)] = a[static_cast<size_t>((gathered ? row(r) : r) * low_padded(M) + m)];
    for (int times = 0; times < 1 + again; ++times) {
      for (ptrdiff_t n = 0; n < N; ++n) {
        float& sum = expected[static_cast<size_t>(m * N + n)];
        sum = product_of(
            level.name, R, column.data(),
            [&](ptrdiff_t r) { return before_b[static_cast<size_t>(r * low_padded(N) + n)]; }, sum);
      }
      for (ptrdiff_t n = 0; n < also_N; ++n) {
        float& sum = also_expected[static_cast<size_t>(m * also_N + n)];
        const auto b_of = [&](ptrdiff_t r) {
          return before_also_b[static_cast<size_t>(row(r) * low_padded(also_N) + n)];
        };
        sum = product_of(level.name, R, column.data(), b_of, sum);
      }
    }
  }
  expect(same_bits(c, expected) && same_bits(also_c, also_expected),
         std::string(level.name) + " bf16 gemm_transposed M=" + std::to_string(M) +
             " N=" + std::to_string(N) + " R=" + std::to_string(R));
}

}  // namespace

void test_bf16(const Level& level) {
  test_rounding(level);
  for (const ptrdiff_t M : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 20, 33, 70})
    for (const ptrdiff_t N : {1, 16, 33, 64, 112, 150})
      for (const ptrdiff_t K : {1, 2, 31, 32, 77})
        test_gemm(level, M, N, K, static_cast<int>((M + N + K) % 3));
  test_gemm(level, 40, 48, 1100, 1);  // more than one block of k
  for (const ptrdiff_t M : {1, 2, 5, 20, 37})
    for (const ptrdiff_t K : {45, 800})
      for (const bool side_by_side : {false, true})
        for (const bool descending : {false, true}) test_gemm_panels(level, M, K, side_by_side, descending);
  for (const ptrdiff_t rows : {1, 15, 16, 17, 31, 40})
    for (const ptrdiff_t n : {1, 15, 32, 33, 79}) test_pack(level, rows, n);
  for (const ptrdiff_t M : {1, 13, 70})
    for (const ptrdiff_t N : {1, 33})
      for (const ptrdiff_t R : {0, 1, 34, 900}) test_gemm_transposed(level, M, N, R, (M + R) % 2 == 0);
}

}  // namespace fusedlstm_tests
