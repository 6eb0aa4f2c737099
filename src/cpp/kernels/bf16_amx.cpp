// bfloat16 products by AMX tiles. For each block of 32 k (zeros past the end) an element's even k and odd k
// are two chains of fused multiply-adds from 0; their sum is added to c. Denormal numbers count as zero.
#include "kernels/bf16.h"

namespace fusedlstm {
namespace {

// Tiles of two blocks of up to 16 rows x two panels of 16 columns.
//   0 1   C of the first rows       4   A of the first rows      6 7   B of the two panels
//   2 3   C of the second rows      5   A of the second rows
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16];

  TileConfig(ptrdiff_t first, ptrdiff_t second) : rows{} {
    rows[0] = rows[1] = rows[4] = static_cast<uint8_t>(first);
    rows[2] = rows[3] = rows[5] = static_cast<uint8_t>(second);
    rows[6] = rows[7] = 16;
  }
};

// The intrinsics of GCC 12 do not say that tiles are loaded from memory.
FUSEDLSTM_INLINE void memory_barrier() { __asm__ volatile("" ::: "memory"); }

template <bool TwoRows, bool TwoPanels>
void tiles(const GemmBf16& g) {
  const size_t a_row = static_cast<size_t>(g.a_row) * 2, b_row = static_cast<size_t>(g.b_step) * 2;
  const size_t init_row = static_cast<size_t>(g.init_row) * 4, c_row = static_cast<size_t>(g.c_row) * 4;
  memory_barrier();
  if (g.init) {
    _tile_loadd(0, g.init, init_row);
    if constexpr (TwoPanels) _tile_loadd(1, g.init + g.c_panel, init_row);
    if constexpr (TwoRows) _tile_loadd(2, g.init + 16 * g.init_row, init_row);
    if constexpr (TwoRows && TwoPanels) _tile_loadd(3, g.init + 16 * g.init_row + g.c_panel, init_row);
  } else {
    _tile_zero(0);
    if constexpr (TwoPanels) _tile_zero(1);
    if constexpr (TwoRows) _tile_zero(2);
    if constexpr (TwoRows && TwoPanels) _tile_zero(3);
  }
  const uint16_t *a = g.a, *b = g.b;
  for (ptrdiff_t k = 0; k < g.K; k += kLowBlock, a += kLowBlock, b += kLowBlock / 2 * g.b_step) {
    _tile_loadd(6, b, b_row);
    _tile_loadd(4, a, a_row);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (TwoPanels) {
      _tile_loadd(7, b + g.b_panel, b_row);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (TwoRows) {
      _tile_loadd(5, a + 16 * g.a_row, a_row);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (TwoPanels) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, g.c, c_row);
  if constexpr (TwoPanels) _tile_stored(1, g.c + g.c_panel, c_row);
  if constexpr (TwoRows) _tile_stored(2, g.c + 16 * g.c_row, c_row);
  if constexpr (TwoRows && TwoPanels) _tile_stored(3, g.c + 16 * g.c_row + g.c_panel, c_row);
  memory_barrier();
}

struct ByTiles {
  static constexpr bool kTwoBlocks = false;

  // Rows [0, M <= 32) of all panels.
  static void row_block(GemmBf16 g) {
    for (; g.N >= 2 * kLowPanel; g = from_panel(g, 2))
      g.M > 16 ? tiles<true, true>(g) : tiles<false, true>(g);
    if (g.N > 0) g.M > 16 ? tiles<true, false>(g) : tiles<false, false>(g);
  }
  static void configure(ptrdiff_t M) {
    const TileConfig config(least<ptrdiff_t>(M, 16), M > 16 ? least<ptrdiff_t>(M - 16, 16) : 0);
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
  }
  static void run(GemmBf16 g) {
    if (g.M >= 32) {
      configure(32);
      // two panels of B stay in the first-level cache while the rows pass by
      const ptrdiff_t rows = g.M / 32 * 32;
      for (GemmBf16 n = g; n.N > 0; n = from_panel(n, 2)) {
        GemmBf16 block = n;
        block.N = least(n.N, 2 * kLowPanel);
        for (ptrdiff_t m = 0; m < rows; m += 32, block = from_row(block, 32)) row_block(block);
      }
      g = from_row(g, rows);
    }
    if (g.M > 0) {
      configure(g.M);
      row_block(g);
    }
    _tile_release();
  }
};

}  // namespace

extern const Bf16Kernels bf16_amx;
const Bf16Kernels bf16_amx = bf16_kernels<ByTiles>();

}  // namespace fusedlstm
