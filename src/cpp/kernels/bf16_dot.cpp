// bfloat16 products by AVX512-BF16. Its instruction adds two products at a time to each sum, the odd k first,
// each by fused multiply-add; denormal numbers count as zero whatever the thread's mode is.
#include "kernels/bf16.h"

namespace fusedlstm {
namespace {

struct Dot {
  using Element = uint16_t;
  static constexpr int kRows = 6, kPanels = 4;

  template <int M, int P>
  static FUSEDLSTM_INLINE void step(Vec<float> (&acc)[M][P], const uint16_t* a, ptrdiff_t a_row,
                                    const uint16_t* b, ptrdiff_t b_panel) {
    __m512bh b_k[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) b_k[p] = (__m512bh)_mm512_loadu_si512(b + p * b_panel);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      int pair;
      __builtin_memcpy(&pair, a + m * a_row, 4);
      const __m512bh a_mk = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) acc[m][p] = _mm512_dpbf16_ps(acc[m][p], a_mk, b_k[p]);
    }
  }
};

}  // namespace

extern const Bf16Kernels bf16_avx512_bf16;
const Bf16Kernels bf16_avx512_bf16 = bf16_kernels<ByVectors<Dot>>();

}  // namespace fusedlstm
