// The product over pixels that makes a weight's gradient: a tile of the result in registers over a block of pixels;
// compiled once per instruction set.
#include "cpu/gemm/multiply.h"
#include "cpu/gemm/outer_product.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

// Pixels of a block: 48 columns of them fill two thirds of a nearest cache of 32 KB. What a block adds to memory also
// bounds how long a running sum gets.
constexpr int64_t kBlockPixelsOfSums = 112;

// kRows channels of a times kVectors vectors of channels of b, the last of them `count` lanes.
template <int kRows, int kVectors, bool kPartial>
void add_tile(const OuterProduct& p, const float* a, const float* b, int64_t pixels, int count, float* out) {
  Vec sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Vec(0.0f);
  }
  for (int64_t pixel = 0; pixel < pixels; ++pixel, a += p.a_stride, b += p.b_stride) {
    Vec columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      columns[v] = kPartial && v == kVectors - 1 ? load_partial(b + v * kLanes, count) : load(b + v * kLanes);
      keep_in_register(columns[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      Vec row(a[r]);
      keep_in_register(row);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = multiply_add(row, columns[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* to = out + r * p.b_channels + v * kLanes;
      const int lanes = kPartial && v == kVectors - 1 ? count : kLanes;
      store_lanes(to, load_lanes(to, lanes) + sums[r][v], lanes);
    }
  }
}

template <int kRows>
void add_rows(const OuterProduct& p, const float* a, const float* b, int64_t pixels, int vectors, int count,
              float* out) {
  const bool partial = count < kLanes;
  switch (vectors) {
    case 1:
      return partial ? add_tile<kRows, 1, true>(p, a, b, pixels, count, out)
                     : add_tile<kRows, 1, false>(p, a, b, pixels, count, out);
    case 2:
      return partial ? add_tile<kRows, 2, true>(p, a, b, pixels, count, out)
                     : add_tile<kRows, 2, false>(p, a, b, pixels, count, out);
    case 3:
      return partial ? add_tile<kRows, 3, true>(p, a, b, pixels, count, out)
                     : add_tile<kRows, 3, false>(p, a, b, pixels, count, out);
  }
}

}  // namespace

void add_outer_product(const OuterProduct& p) {
  const int64_t blocks = divide_up(p.pixels, kBlockPixelsOfSums);
  const int64_t tiles = divide_up(p.a_channels, kTileRows), vectors = divide_up(p.b_channels, kLanes);
  const int64_t strips = divide_up(vectors, 3);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t pixel = block * p.pixels / blocks, pixels = (block + 1) * p.pixels / blocks - pixel;
    for (int64_t strip = 0; strip < strips; ++strip) {
      const int64_t vector = strip * vectors / strips, end = (strip + 1) * vectors / strips;
      const int64_t column = vector * kLanes;
      const int count = lanes_left(p.b_channels, (end - 1) * kLanes);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t row = tile * p.a_channels / tiles, rows = (tile + 1) * p.a_channels / tiles - row;
        with_tile_rows(rows, [&](auto known) {
          add_rows<known.value>(p, p.a + pixel * p.a_stride + row, p.b + pixel * p.b_stride + column, pixels,
                                static_cast<int>(end - vector), count, p.out + row * p.b_channels + column);
        });
      }
    }
  }
}

}  // namespace effnet::cpu::EFFNET_ISA
