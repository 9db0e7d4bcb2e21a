// The matrix product of inference: a few rows of A (pixels) times a panel of up to 48 columns of W, accumulated in
// registers over the whole of K; compiled once per instruction set.
#include "network_kernels.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

template <class T>
struct Tile {
  const T* a;
  const Segment* segments;
  int64_t segment_count;
  int64_t first;     // pixel
  const T* b;        // the panel from the tile's first column on
  int64_t b_stride;  // elements from row (bfloat16: pair of rows) to row
  float* out;        // [rows][kPanel]
};

template <int kRows, int kVectors>
inline void store_tile(const Vec (&sums)[kRows][kVectors], float* out) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(out + r * kPanel + v * kLanes, sums[r][v]);
  }
}

template <int kRows, int kVectors>
void multiply_tile(const Tile<float>& tile) {
  Vec sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Vec(0.0f);
  }
  const float* b = tile.b;
  for (int64_t s = 0; s < tile.segment_count; ++s) {
    const Segment segment = tile.segments[s];
    const int64_t stride = segment.pixel_stride;
    const float* a = tile.a + segment.offset + tile.first * stride;
    const float* const end = a + segment.length;
    for (; a != end; ++a) {
      Vec columns[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        columns[v] = load(b + v * kLanes);
        keep_in_register(columns[v]);
      }
      b += tile.b_stride;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        Vec row(a[r * stride]);
        keep_in_register(row);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] = multiply_add(row, columns[v], sums[r][v]);
      }
    }
  }
  store_tile(sums, tile.out);
}

inline uint32_t load_pair(const BFloat16* from) {
  uint32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return pair;
}

inline Uint load_pairs(const BFloat16* from) {
  Uint pairs;
  std::memcpy(&pairs, from, sizeof pairs);
  return pairs;
}

// Two rows of W at a time, which lie in memory as pairs.
template <int kRows, int kVectors>
void multiply_tile(const Tile<BFloat16>& tile) {
  Vec sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Vec(0.0f);
  }
  const BFloat16* b = tile.b;
  for (int64_t s = 0; s < tile.segment_count; ++s) {
    const Segment segment = tile.segments[s];
    const int64_t stride = segment.pixel_stride;
    const BFloat16* a = tile.a + segment.offset + tile.first * stride;
    const BFloat16* const end = a + segment.length;
    for (; a != end; a += 2) {
#if defined(__AVX512BF16__)
      __m512i columns[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        columns[v] = (__m512i)load_pairs(b + 2 * v * kLanes);
        asm("" : "+v"(columns[v]));
      }
      b += tile.b_stride;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        __m512i row = _mm512_set1_epi32(static_cast<int>(load_pair(a + r * stride)));
        asm("" : "+v"(row));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          sums[r][v].v = (Float)_mm512_dpbf16_ps((__m512)sums[r][v].v, (__m512bh)row, (__m512bh)columns[v]);
        }
      }
#else
      Vec even[kVectors], odd[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Uint pairs = load_pairs(b + 2 * v * kLanes);
        even[v] = (Float)(pairs << 16);
        odd[v] = (Float)(pairs & 0xffff0000u);
      }
      b += tile.b_stride;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec first(as_float(a[r * stride])), second(as_float(a[r * stride + 1]));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          sums[r][v] = multiply_add(second, odd[v], multiply_add(first, even[v], sums[r][v]));
        }
      }
#endif
    }
  }
  store_tile(sums, tile.out);
}

template <class T, int kRows>
void multiply_rows(const Tile<T>& tile, int vectors) {
  switch (vectors) {
    case 1:
      return multiply_tile<kRows, 1>(tile);
    case 2:
      return multiply_tile<kRows, 2>(tile);
    case 3:
      return multiply_tile<kRows, 3>(tile);
  }
}

template <class T>
void multiply_tile_of(const Tile<T>& tile, int rows, int vectors) {
  switch (rows) {
    case 1:
      return multiply_rows<T, 1>(tile, vectors);
    case 2:
      return multiply_rows<T, 2>(tile, vectors);
    case 3:
      return multiply_rows<T, 3>(tile, vectors);
#if defined(__AVX2__) || defined(__aarch64__)
    case 4:
      return multiply_rows<T, 4>(tile, vectors);
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
    case 5:
      return multiply_rows<T, 5>(tile, vectors);
    case 6:
      return multiply_rows<T, 6>(tile, vectors);
    case 7:
      return multiply_rows<T, 7>(tile, vectors);
    case 8:
      return multiply_rows<T, 8>(tile, vectors);
#endif
  }
}

template <class T>
void multiply_all(const T* a, const Gemm& gemm, int64_t first, int pixels, const T* panel, int64_t width, float* out) {
  constexpr int kPair = kIsHalf<T> ? 2 : 1;
  const int vectors = static_cast<int>(width * kGroup / kLanes);
  const int tiles = (pixels + kTileRows - 1) / kTileRows, parts = (vectors + 2) / 3;
  int vector = 0;
  for (int part = 0; part < parts; ++part) {
    const int vector_end = (part + 1) * vectors / parts;
    int row = 0;
    for (int i = 0; i < tiles; ++i) {
      // Tiles of nearly equal height: 49 rows are 7 times 7, not 6 times 8 and 1, which would wait for its sums.
      const int row_end = (i + 1) * pixels / tiles;
      const Tile<T> tile{a,
                         gemm.segments,
                         gemm.segment_count,
                         first + row,
                         panel + vector * kLanes * kPair,
                         width * kGroup * kPair,
                         out + row * kPanel + vector * kLanes};
      multiply_tile_of(tile, row_end - row, vector_end - vector);
      row = row_end;
    }
    vector = vector_end;
  }
}

}  // namespace

void multiply_fp32(const float* a, const Gemm& gemm, int64_t first, int pixels, const float* panel, int64_t width,
                   float* out) {
  multiply_all(a, gemm, first, pixels, panel, width, out);
}

void multiply_bf16(const BFloat16* a, const Gemm& gemm, int64_t first, int pixels, const BFloat16* panel, int64_t width,
                   float* out) {
  multiply_all(a, gemm, first, pixels, panel, width, out);
}

}  // namespace effnet::cpu::EFFNET_ISA
