// The matrix product of a block of pixels and a panel, and packing for it, within one instruction set.
#pragma once

#include <utility>

#include "cpu/gemm/pack.h"
#include "cpu/gemm/panels.h"
#include "cpu/isa/vec.h"

namespace effnet::cpu::EFFNET_ISA {

// Rows of a tile of the matrix product: with 3 vectors of columns, as many accumulators as the registers hold.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 8;
#elif defined(__AVX2__)
constexpr int kTileRows = 4;
#else
constexpr int kTileRows = 3;
#endif
// f(integral constant of the same value) of 1 to kTileRows rows.
template <class F, int... kLess>
EFFNET_INLINE void with_tile_rows(int64_t rows, F f, std::integer_sequence<int, kLess...>) {
  (void)((rows == kLess + 1 && (f(std::integral_constant<int, kLess + 1>()), true)) || ...);
}
template <class F>
EFFNET_INLINE void with_tile_rows(int64_t rows, F f) {
  with_tile_rows(rows, f, std::make_integer_sequence<int, kTileRows>());
}
// Pixels multiplied before the epilogue runs over them: with 48 channels, 6 KB that stay in the nearest cache.
constexpr int kBlockPixels = 32;
static_assert(kBlockPixels >= kTileRows);

// out[pixels][kPanel] = pixels [first, first + pixels) of A times a panel of `weights`, fp32.
void multiply(const float* a, const Gemm& gemm, int64_t first, int pixels, const void* weights, int64_t panel,
              float* out);
void multiply(const BFloat16* a, const Gemm& gemm, int64_t first, int pixels, const void* weights, int64_t panel,
              float* out);

template <class T>
inline const T* panel_of(const Gemm& gemm, const void* weights, int64_t panel) {
  return static_cast<const T*>(weights) + gemm.panels.first(panel) * kGroup * gemm.depth;
}

// Item number `item` of all of `packings`, one after another.
void pack_item(const Packing* packings, int64_t item);

}  // namespace effnet::cpu::EFFNET_ISA
