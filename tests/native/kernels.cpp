// The kernels of one level against scalar code: products bit for bit, functions within their bounds.
#include <algorithm>
#include <limits>

#include "check.h"

namespace fusedlstm_tests {
namespace {

using fusedlstm::CellBackward;
using fusedlstm::CellForward;
using fusedlstm::Gemm;
using fusedlstm::GemmTransposed;
using fusedlstm::Kernels;
using fusedlstm::Level;

ptrdiff_t round_up(ptrdiff_t n, ptrdiff_t unit) { return (n + unit - 1) / unit * unit; }

template <class T>
std::string name_of(const Level& level, const char* what) {
  return std::string(level.name) + " " + type_name<T>() + " " + what;
}

// C = init + A B, every element one chain of fused multiply-adds in the order of k; strides larger than the
// rows; columns from either end.
template <class T>
void test_gemm(const Level& level, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, bool with_init) {
  const Kernels<T>& kernels = table_of<T>(level);
  Values values(static_cast<uint32_t>(M * 10007 + N * 101 + K));
  const ptrdiff_t a_row = K + 3, c_row = N + 5;
  const auto a = values.vector<T>(M * a_row), b = values.vector<T>(K * N), init = values.vector<T>(N);
  std::vector<T> panels(static_cast<size_t>(K * round_up(N, kernels.panel)));
  std::vector<T> c = values.vector<T>(M * c_row), expected = c;
  // B comes transposed, as (N, K)
  kernels.pack(K, N, b.data(), K, fusedlstm::SourceBy::kColumns, {}, panels.data());
  std::vector<T> c_descending = c;
  for (const bool descending : {false, true})
    kernels.gemm({.M = M,
                  .N = N,
                  .K = K,
                  .a = a.data(),
                  .a_row = a_row,
                  .b = panels.data(),
                  .init = with_init ? init.data() : nullptr,
                  .init_row = 0,
                  .c = (descending ? c_descending : c).data(),
                  .c_row = c_row,
                  .descending = descending});
  for (ptrdiff_t m = 0; m < M; ++m)
    for (ptrdiff_t n = 0; n < N; ++n) {
      T sum = with_init ? init[n] : T(0);
      for (ptrdiff_t k = 0; k < K; ++k) sum = std::fma(a[m * a_row + k], b[n * K + k], sum);
      expected[m * c_row + n] = sum;
    }
  expect(same_bits(c, expected) && same_bits(c_descending, expected),
         name_of<T>(level, "gemm") + " M=" + std::to_string(M) + " N=" + std::to_string(N) +
             " K=" + std::to_string(K));
}

// Panels of three groups of rows, each padded with zero rows; the rows as columns of B, and as its rows.
template <class T>
void test_pack(const Level& level, ptrdiff_t rows, ptrdiff_t n) {
  const Kernels<T>& kernels = table_of<T>(level);
  const ptrdiff_t padded = round_up(rows, 16), all = 3 * padded, panel = kernels.panel;
  const auto source = Values(static_cast<uint32_t>(rows * 101 + n)).vector<T>(3 * rows * n);
  const auto element = [&](ptrdiff_t row, ptrdiff_t j) {
    const ptrdiff_t r = row % padded;
    return row < all && r < rows && j < n ? source[static_cast<size_t>((row / padded * rows + r) * n + j)]
                                          : T(0);
  };
  for (const bool columns : {true, false}) {
    const ptrdiff_t K = columns ? n : all, N = columns ? all : n;
    std::vector<T> panels(static_cast<size_t>(K * round_up(N, panel)), T(7)), expected = panels;
    kernels.pack(K, N, source.data(), n, columns ? fusedlstm::SourceBy::kColumns : fusedlstm::SourceBy::kRows,
                 {rows, padded}, panels.data());
    for (ptrdiff_t c = 0; c < round_up(N, panel); ++c)
      for (ptrdiff_t k = 0; k < K; ++k)
        expected[static_cast<size_t>(c / panel * K * panel + k * panel + c % panel)] =
            columns ? element(c, k) : element(k, c);
    expect(same_bits(panels, expected), name_of<T>(level, columns ? "pack of columns" : "pack of rows") +
                                            " in groups of " + std::to_string(rows) +
                                            ", n=" + std::to_string(n));
  }
}

// C += A^T B over gathered rows, in their order, and another product of the same A beside it. A second time
// with what the first has packed: B itself is not read then.
template <class T>
void test_gemm_transposed(const Level& level, ptrdiff_t M, ptrdiff_t N, ptrdiff_t R, bool gathered) {
  const Kernels<T>& kernels = table_of<T>(level);
  Values values(static_cast<uint32_t>(M * 10007 + N * 101 + R));
  const ptrdiff_t also_N = gathered ? N % 40 + 3 : 0;
  const auto a = values.vector<T>(R * M), b = values.vector<T>(R * N), also_b = values.vector<T>(R * also_N);
  auto read_b = b, read_also_b = also_b;
  std::vector<int32_t> rows(static_cast<size_t>(R));
  for (ptrdiff_t r = 0; r < R; ++r) rows[r] = static_cast<int32_t>((r * 7 + 3) % R);
  std::vector<T> c = values.vector<T>(M * N), expected = c;
  std::vector<T> also_c = values.vector<T>(M * also_N), also_expected = also_c;
  std::vector<T> scratch(static_cast<size_t>(fusedlstm::transposed_scratch(N, kernels.panel, also_N)));
  fusedlstm::GemmTransposed<T> product{
      .M = M,
      .R = R,
      .a = a.data(),
      .a_row = M,
      .a_rows = gathered ? rows.data() : nullptr,
      .side = {N, read_b.data(), N, nullptr, c.data(), N},
      .scratch = scratch.data(),
      .also = {also_N, read_also_b.data(), also_N, rows.data(), also_c.data(), also_N}};
  kernels.gemm_transposed(product);
  const bool again = R <= fusedlstm::kReductionBlock;
  if (again) {
    std::fill(read_b.begin(), read_b.end(), std::numeric_limits<T>::quiet_NaN());
    std::fill(read_also_b.begin(), read_also_b.end(), std::numeric_limits<T>::quiet_NaN());
    product.packed = true;
    kernels.gemm_transposed(product);
  }
  for (ptrdiff_t m = 0; m < M; ++m) {
    for (ptrdiff_t of_all = 0; of_all < (1 + again) * R; ++of_all) {
      const ptrdiff_t r = of_all % R;
      const T a_rm = a[(gathered ? rows[r] : r) * M + m];
      for (ptrdiff_t n = 0; n < N; ++n)
        expected[m * N + n] = std::fma(a_rm, b[r * N + n], expected[m * N + n]);
      for (ptrdiff_t n = 0; n < also_N; ++n)
        also_expected[m * also_N + n] =
            std::fma(a_rm, also_b[rows[r] * also_N + n], also_expected[m * also_N + n]);
    }
  }
  expect(same_bits(c, expected) && same_bits(also_c, also_expected),
         name_of<T>(level, "gemm_transposed") + " M=" + std::to_string(M) + " N=" + std::to_string(N) +
             " R=" + std::to_string(R));
}

long double sigmoid(long double x) { return 1 / (1 + std::exp(-x)); }

// Largest error of one element, in units in the last place of the expected value.
template <class T>
double ulps(T actual, long double expected) {
  const long double magnitude = std::max<long double>(std::abs(expected), std::numeric_limits<T>::min());
  const long double ulp = std::ldexp(1.0L, std::ilogb(magnitude) - (std::numeric_limits<T>::digits - 1));
  return static_cast<double>(std::abs(static_cast<long double>(actual) - expected) / ulp);
}

template <class T>
void test_function(const Level& level, const char* name, void (*kernel)(ptrdiff_t, const T*, T*),
                   long double (*exact)(long double), double bound, T low, T high) {
  // Every length up to three vectors at once with a sweep, so that each lane and each tail is visited.
  const ptrdiff_t lanes = table_of<T>(level).lanes;
  std::vector<T> x;
  constexpr int kPoints = 20011;
  for (int k = 0; k < kPoints; ++k) x.push_back(low + (high - low) * static_cast<T>(k) / kPoints);
  std::vector<T> y(x.size());
  double worst = 0;
  size_t position = 0;
  for (ptrdiff_t n = 1; position < x.size(); n = n % (3 * lanes) + 1) {
    const ptrdiff_t count = std::min<ptrdiff_t>(n, static_cast<ptrdiff_t>(x.size() - position));
    kernel(count, x.data() + position, y.data() + position);
    position += static_cast<size_t>(count);
  }
  for (size_t k = 0; k < x.size(); ++k) worst = std::max(worst, ulps(y[k], exact(x[k])));
  expect(worst <= bound,
         name_of<T>(level, name) + ": " + std::to_string(worst) + " ulp, bound " + std::to_string(bound));
}

template <class T>
void test_functions(const Level& level) {
  const Kernels<T>& kernels = table_of<T>(level);
  const T edge = sizeof(T) == 4 ? T(87) : T(708);
  using Exact = long double (*)(long double);
  test_function<T>(level, "exp", kernels.exp, static_cast<Exact>(std::exp), 2, -edge, edge);
  test_function<T>(level, "log", kernels.log, static_cast<Exact>(std::log), 2, T(1e-3), T(1e3));
  test_function<T>(level, "sigmoid", kernels.sigmoid, sigmoid, 4, -edge, edge);
  test_function<T>(level, "tanh", kernels.tanh, static_cast<Exact>(std::tanh), 4, T(-12), T(12));
}

// Forward and backward of the cell against its formulas in long double.
template <class T>
void test_cell(const Level& level, ptrdiff_t M, ptrdiff_t H) {
  const Kernels<T>& kernels = table_of<T>(level);
  const ptrdiff_t P = round_up(H, kernels.lanes);
  Values values(static_cast<uint32_t>(M * 1009 + H));
  const auto weight = values.vector<T>(4 * H * H), input = values.vector<T>(M * 4 * P);
  const auto h_prev = values.vector<T>(M * P), c_prev = values.vector<T>(M * P);
  std::vector<T> packed(static_cast<size_t>(4 * P * H)), gates(static_cast<size_t>(M * 4 * P));
  std::vector<T> c(static_cast<size_t>(M * P)), h(static_cast<size_t>(M * P));
  kernels.pack_recurrent(H, P, weight.data(), packed.data());
  fusedlstm::CellForward<T> cell{.M = M,
                                 .H = H,
                                 .H_pad = P,
                                 .unit_begin = 0,
                                 .unit_end = P,
                                 .h_prev = h_prev.data(),
                                 .h_row = P,
                                 .recurrent = packed.data(),
                                 .input = input.data(),
                                 .input_row = 4 * P,
                                 .gates = gates.data(),
                                 .gates_row = 4 * P,
                                 .c_prev = c_prev.data(),
                                 .c = c.data(),
                                 .c_row = P,
                                 .h = h.data()};
  kernels.cell_forward(cell);
  std::vector<T> h_descending(h.size());
  cell.h = h_descending.data();
  cell.descending = true;
  kernels.cell_forward(cell);
  expect(same_bits(h, h_descending), name_of<T>(level, "cell_forward") + " in both directions");

  const double bound = (sizeof(T) == 4 ? 2e-6 : 4e-15) * std::max<double>(1, H / 16.0);
  const auto dh = values.vector<T>(M * P), dy = values.vector<T>(M * P), dc_next = values.vector<T>(M * P);
  std::vector<T> d_gates = gates, dc = dc_next;
  kernels.cell_backward({.M = M,
                         .H_pad = P,
                         .unit_begin = 0,
                         .unit_end = P,
                         .gates = d_gates.data(),
                         .gates_row = 4 * P,
                         .c_prev = c_prev.data(),
                         .c = c.data(),
                         .c_row = P,
                         .dh = dh.data(),
                         .dc = dc.data(),
                         .d_row = P,
                         .dy = dy.data(),
                         .dy_row = P});

  double forward = 0, backward = 0;
  for (ptrdiff_t m = 0; m < M; ++m)
    for (ptrdiff_t u = 0; u < H; ++u) {
      long double a[4];
      for (ptrdiff_t gate = 0; gate < 4; ++gate) {
        a[gate] = input[(m * 4 + gate) * P + u];
        for (ptrdiff_t k = 0; k < H; ++k)
          a[gate] += static_cast<long double>(h_prev[m * P + k]) * weight[(gate * H + u) * H + k];
      }
      const long double i = sigmoid(a[0]), f = sigmoid(a[1]), g = std::tanh(a[2]), o = sigmoid(a[3]);
      const long double c_t = f * c_prev[m * P + u] + i * g, t = std::tanh(c_t);
      const auto error = [](T actual, long double wanted) {
        return static_cast<double>(std::abs(actual - wanted));
      };
      const T* actual = gates.data() + m * 4 * P + u;
      forward = std::max({forward, error(actual[0], i), error(actual[P], f), error(actual[2 * P], g),
                          error(actual[3 * P], o), error(c[m * P + u], c_t), error(h[m * P + u], o * t)});

      const long double d = static_cast<long double>(dh[m * P + u]) + dy[m * P + u];
      const long double d_c = dc_next[m * P + u] + d * o * (1 - t * t);
      actual = d_gates.data() + m * 4 * P + u;
      backward = std::max({backward, error(actual[0], d_c * g * i * (1 - i)),
                           error(actual[P], d_c * c_prev[m * P + u] * f * (1 - f)),
                           error(actual[2 * P], d_c * i * (1 - g * g)),
                           error(actual[3 * P], d * t * o * (1 - o)), error(dc[m * P + u], d_c * f)});
    }
  const std::string where = " M=" + std::to_string(M) + " H=" + std::to_string(H);
  expect(forward <= bound, name_of<T>(level, "cell_forward") + where + ": error " +
                               std::to_string(forward / bound) + " of the bound");
  expect(backward <= 2 * bound, name_of<T>(level, "cell_backward") + where + ": error " +
                                    std::to_string(backward / bound / 2) + " of the bound");
}

// Additive attention scores and their derivatives against the formulas in long double.
template <class T>
void test_additive(const Level& level, ptrdiff_t A, ptrdiff_t S, bool covers) {
  const Kernels<T>& kernels = table_of<T>(level);
  Values values(static_cast<uint32_t>(A * 1009 + S));
  const auto keys = values.vector<T>(S * A), query = values.vector<T>(A), v = values.vector<T>(A);
  const auto w = values.vector<T>(A), coverage = values.vector<T>(S), d_scores = values.vector<T>(S);
  const auto size = [](ptrdiff_t n) { return static_cast<size_t>(n); };
  const ptrdiff_t columns = round_up(S, kernels.panel);
  std::vector<T> panels(size(A * columns)), d_panels(size(A * columns)), scores(size(S)), d_query(size(A)),
      d_v(size(A)), d_w(size(A));
  std::vector<T> d_coverage = values.vector<T>(S), d_coverage_before = d_coverage;
  kernels.pack(A, S, keys.data(), A, fusedlstm::SourceBy::kColumns, {}, panels.data());
  const fusedlstm::AdditiveScores<T> forward{.A = A,
                                             .S = S,
                                             .keys = panels.data(),
                                             .query = query.data(),
                                             .v = v.data(),
                                             .w = covers ? w.data() : nullptr,
                                             .coverage = coverage.data(),
                                             .scores = scores.data()};
  kernels.additive_scores(forward);
  kernels.additive_backward({.forward = forward,
                             .d_scores = d_scores.data(),
                             .d_keys = d_panels.data(),
                             .d_query = d_query.data(),
                             .d_v = d_v.data(),
                             .d_w = d_w.data(),
                             .d_coverage = d_coverage.data()});
  std::vector<long double> score(size(S)), dq(size(A)), dv(size(A)), dw(size(A));
  std::vector<long double> dc(d_coverage_before.begin(), d_coverage_before.end());
  double error = 0;
  const auto compare = [&](T actual, long double wanted) {
    error = std::max(error, static_cast<double>(std::abs(actual - wanted)));
  };
  for (ptrdiff_t s = 0; s < S; ++s) {
    for (ptrdiff_t a = 0; a < A; ++a) {
      const long double weight = covers ? w[size(a)] : T(0);
      const long double t = std::tanh(static_cast<long double>(keys[size(s * A + a)]) + query[size(a)] +
                                      coverage[size(s)] * weight);
      const long double du = d_scores[size(s)] * v[size(a)] * (1 - t * t);
      score[size(s)] += v[size(a)] * t;
      dq[size(a)] += du;
      dv[size(a)] += d_scores[size(s)] * t;
      dw[size(a)] += du * coverage[size(s)];
      dc[size(s)] += du * weight;
      compare(d_panels[size(s / kernels.panel * (A * kernels.panel) + a * kernels.panel + s % kernels.panel)],
              du);
    }
    compare(scores[size(s)], score[size(s)]);
    compare(d_coverage[size(s)], dc[size(s)]);
  }
  for (ptrdiff_t a = 0; a < A; ++a) {
    compare(d_query[size(a)], dq[size(a)]);
    compare(d_v[size(a)], dv[size(a)]);
    if (covers) compare(d_w[size(a)], dw[size(a)]);
  }
  const double bound =
      static_cast<double>(std::numeric_limits<T>::epsilon()) * static_cast<double>(A + S + 8);
  expect(error <= bound, name_of<T>(level, "additive") + " A=" + std::to_string(A) +
                             " S=" + std::to_string(S) + ": error " + std::to_string(error / bound) +
                             " of the bound");
}

template <class T>
void test_all(const Level& level) {
  const ptrdiff_t lanes = table_of<T>(level).lanes;
  for (ptrdiff_t M : {0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 29})
    for (ptrdiff_t N :
         {ptrdiff_t{1}, lanes - 1, lanes + 1, 2 * lanes, 3 * lanes, 4 * lanes - 1, 6 * lanes + 3, 17 * lanes})
      for (ptrdiff_t K : {0, 1, 7, 33}) test_gemm<T>(level, M, N, K, (M + N + K) % 2 == 0);
  test_gemm<T>(level, 300, 3 * lanes, 400, true);  // more than one block of rows
  for (ptrdiff_t rows : {1, 15, 16, 17, 31, 40})
    for (ptrdiff_t n : {ptrdiff_t{1}, lanes + 1, 2 * lanes, 5 * lanes - 1}) test_pack<T>(level, rows, n);
  for (ptrdiff_t M : {1, 5, 13, 64, 70})
    for (ptrdiff_t N : {ptrdiff_t{1}, 2 * lanes + 1, 3 * lanes})
      for (ptrdiff_t R : {0, 1, 17, 400, 800}) test_gemm_transposed<T>(level, M, N, R, (M + R) % 2 == 0);
  for (ptrdiff_t M : {1, 2, 3, 6, 14})
    for (ptrdiff_t H = 1; H <= 2 * lanes + 3; ++H) test_cell<T>(level, M, H);
  for (ptrdiff_t A : {1, 5, 33})
    for (ptrdiff_t S = 1; S <= 4 * lanes + 3; S += 3) test_additive<T>(level, A, S, S % 2 == 0);
  test_functions<T>(level);
}

}  // namespace

void test_kernels(const Level& level) {
  test_all<float>(level);
  test_all<double>(level);
}

}  // namespace fusedlstm_tests
