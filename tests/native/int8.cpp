// The int8 products of one level against scalar code, bit for bit: integers are exact, and what follows is a
// few float32 operations in a fixed order.
#include <algorithm>

#include "check.h"

namespace fusedlstm_tests {
namespace {

using namespace fusedlstm;

// Integers value / scale, ties to even.
int quantised(float value, float scale) {
  return scale > 0 ? static_cast<int>(std::clamp(std::nearbyint(value * (1 / scale)), -127.0f, 127.0f)) : 0;
}

void test_gemm(const std::string& name, const Int8Kernels& kernels, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
               bool hidden) {
  Values values(static_cast<uint32_t>(M * 10007 + N * 101 + K));
  const auto x = values.vector<float>(M * K), b = values.vector<float>(N * K), init = values.vector<float>(N);
  const ptrdiff_t a_row = low_padded(K);
  std::vector<int8_t> a(static_cast<size_t>(M * a_row), 99),
      panels(static_cast<size_t>(N / kLowPanel * int8_panel(K)));
  std::vector<float> row_scale(static_cast<size_t>(M)), column_scale(static_cast<size_t>(N));
  kernels.quantise_rows(M, K, a_row, x.data(), K, a.data(), a_row, hidden ? nullptr : row_scale.data());
  kernels.pack(K, N, b.data(), K, panels.data(), int8_layout(K),
               column_scale.data());  // B comes transposed, as (N, K)
  std::vector<float> c = values.vector<float>(M * N), expected = c;
  kernels.gemm({.M = M,
                .N = N,
                .K = K,
                .a = a.data(),
                .a_row = a_row,
                .b = panels.data(),
                .b_panel = int8_panel(K),
                .init = init.data(),
                .init_row = 0,
                .c = c.data(),
                .c_row = N,
                .column_scale = column_scale.data(),
                .row_scale = hidden ? nullptr : row_scale.data()});
  const auto largest = [K](const float* row) {
    float most = 0;
    for (ptrdiff_t k = 0; k < K; ++k) most = std::max(most, std::abs(row[k]));
    return most;
  };
  for (ptrdiff_t m = 0; m < M; ++m)
    for (ptrdiff_t n = 0; n < N; ++n) {
      const float *row = x.data() + m * K, *column = b.data() + n * K;
      const float row_step = largest(row) / 127, column_step = largest(column) / 127;
      int64_t sum = 0;
      for (ptrdiff_t k = 0; k < K; ++k) {
        const int in_steps =
            hidden ? static_cast<int>(std::nearbyint(row[k] * 127)) : quantised(row[k], row_step);
        sum += in_steps * quantised(column[k], column_step);
      }
      float value = static_cast<float>(sum);
      if (!hidden) value *= row_step;
      const float product = column_step * value;
      expected[static_cast<size_t>(m * N + n)] = init[static_cast<size_t>(n)] + product;
    }
  expect(same_bits(c, expected),
         name + " int8 gemm M=" + std::to_string(M) + " N=" + std::to_string(N) + " K=" + std::to_string(K));
}

// Blocks of four panels side by side, from the last to the first or from the first on, are as many panels one
// after the other.
void test_blocks(const std::string& name, const Int8Kernels& kernels, ptrdiff_t M, ptrdiff_t K,
                 bool descending) {
  constexpr ptrdiff_t blocks = 3, N = 4 * kLowPanel * blocks;
  Values values(static_cast<uint32_t>(M * 10007 + K));
  const auto x = values.vector<float>(M * K), b = values.vector<float>(N * K), init = values.vector<float>(N);
  const ptrdiff_t a_row = low_padded(K);
  std::vector<int8_t> a(static_cast<size_t>(M * a_row));
  kernels.quantise_rows(M, K, a_row, x.data(), K, a.data(), a_row, nullptr);
  const LowLayout one = int8_layout(K), four = four_gates(one);
  std::vector<int8_t> panels(static_cast<size_t>(4 * blocks * one.panel)), side_by_side = panels;
  std::vector<float> scale(N), c(static_cast<size_t>(M * N)), in_blocks = c;
  kernels.pack(K, N, b.data(), K, panels.data(), one, scale.data());
  for (ptrdiff_t p = 0; p < 4 * blocks; ++p) {
    std::vector<float> same(kLowPanel);
    kernels.pack(K, kLowPanel, b.data() + p * kLowPanel * K, K,
                 side_by_side.data() + p / 4 * four.panel + p % 4 * one.step, four, same.data());
  }
  GemmInt8 product{.M = M,
                   .N = N,
                   .K = K,
                   .a = a.data(),
                   .a_row = a_row,
                   .b = panels.data(),
                   .b_panel = one.panel,
                   .init = init.data(),
                   .init_row = 0,
                   .c = c.data(),
                   .c_row = N,
                   .column_scale = scale.data()};
  kernels.gemm(product);
  const ptrdiff_t first = descending ? blocks - 1 : 0, direction = descending ? -1 : 1;
  product.N = 4 * kLowPanel;
  product.b = side_by_side.data() + first * four.panel;
  product.b_panel = one.step;
  product.b_step = four.step;
  product.init += first * product.N;
  product.column_scale += first * product.N;
  product.c = in_blocks.data() + first * product.N;
  product.blocks = blocks;
  product.b_block = direction * four.panel;
  product.c_block = direction * product.N;
  kernels.gemm(product);
  expect(same_bits(c, in_blocks), name + " int8 gemm of blocks, M=" + std::to_string(M) +
                                      " K=" + std::to_string(K) + (descending ? ", descending" : ""));
}

// The largest sum there is: nothing may overflow or saturate.
void test_extremes(const std::string& name, const Int8Kernels& kernels) {
  constexpr ptrdiff_t K = kInt8MostTerms;
  const std::vector<float> ones(static_cast<size_t>(16 * K), 1.0f);
  std::vector<int8_t> a(static_cast<size_t>(K)), panels(static_cast<size_t>(int8_panel(K)));
  std::vector<float> scale(16), zeros(16, 0.0f), c(16);
  kernels.quantise_rows(1, K, K, ones.data(), K, a.data(), K, nullptr);
  kernels.pack(K, 16, ones.data(), K, panels.data(), int8_layout(K), scale.data());
  kernels.gemm({.M = 1,
                .N = 16,
                .K = K,
                .a = a.data(),
                .a_row = K,
                .b = panels.data(),
                .b_panel = int8_panel(K),
                .init = zeros.data(),
                .init_row = 0,
                .c = c.data(),
                .c_row = 16,
                .column_scale = scale.data()});
  const float expected = scale[0] * static_cast<float>(127 * 127 * K);
  expect(c == std::vector<float>(16, expected), name + " int8 gemm of the largest sum");
}

}  // namespace

void test_int8(const std::string& name, const Int8Kernels& kernels) {
  for (const ptrdiff_t M : {0, 1, 2, 3, 4, 5, 9, 17})
    for (const ptrdiff_t N : {16, 48, 64, 176})
      for (const ptrdiff_t K : {1, 3, 4, 31, 32, 77}) test_gemm(name, kernels, M, N, K, (M + N + K) % 2 == 0);
  for (const ptrdiff_t M : {1, 2, 7})
    for (const ptrdiff_t K : {3, 33, 77})
      for (const bool descending : {false, true}) test_blocks(name, kernels, M, K, descending);
  test_extremes(name, kernels);
}

}  // namespace fusedlstm_tests
