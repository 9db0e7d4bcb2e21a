// What the files of the inference kernels share, within one instruction set.
#pragma once

#include <type_traits>
#include <utility>

#include "network.h"
#include "vec.h"

namespace effnet::cpu::EFFNET_ISA {

template <class T>
constexpr bool kIsHalf = std::is_same_v<T, BFloat16>;

// Round to nearest, ties to even; NaN stays NaN.
inline BFloat16 to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {static_cast<uint16_t>(x == x ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : (bits >> 16) | 0x40u)};
}

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

void stem_item(const Step& step, int64_t item, float* scratch);
// Squeeze, excite, classifier.
void vectors_item(const Step& step, int64_t item, float* scratch);
void pack_item(const Step& step, int64_t item);
// Expansion and depthwise convolution of one band and one chunk of channels.
void expand_depthwise_item(const Step& step, int64_t item, float* scratch);

}  // namespace effnet::cpu::EFFNET_ISA
