// The matrix product of inference: a few rows of A (pixels) times a panel of up to 48 columns of W, accumulated in
// registers over the whole of K; compiled once per instruction set.
#include "cpu/gemm/multiply.h"
#include "cpu/gemm/multiply_amx.h"
#include "cpu/isa/storage.h"

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
  const T* ahead;    // see Gemm; null: nothing
  const Segment* ahead_segments;
  int64_t ahead_first;  // pixel
};

// A vector of columns is as wide as a register or half of that: where a register has 64 bytes, instructions of 32 take
// half the time, and the last 8 of 24, 40 or 56 channels need not pay for 16.
#if defined(__AVX512F__)
constexpr bool kHalfVectors = true;
using HalfFloat = float __attribute__((vector_size(32)));
using HalfUint = uint32_t __attribute__((vector_size(32)));
EFFNET_INLINE HalfFloat narrow(Float x) { return __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7); }
#else
constexpr bool kHalfVectors = false;
using HalfFloat = Float;
using HalfUint = Uint;
[[maybe_unused]] EFFNET_INLINE HalfFloat narrow(Float x) { return x; }
#endif
EFFNET_INLINE Uint bits_of(Float x) { return (Uint)x; }
#if defined(__AVX512F__)
EFFNET_INLINE HalfUint bits_of(HalfFloat x) { return (HalfUint)x; }
#endif

template <class V>
EFFNET_INLINE V load_vector(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Without this GCC loads a value anew for every use.
template <class V>
EFFNET_INLINE void pin(V& x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  (void)x;
#endif
}

// An element of A in every lane.
template <class T>
struct Row;
// A row of W, one vector of its columns.
template <class T, class V>
struct Columns;

template <>
struct Row<float> {
  Float value;
  EFFNET_INLINE explicit Row(const float* a) : value(*a - Float{}) { pin(value); }
};

template <class V>
struct Columns<float, V> {
  V value;
  EFFNET_INLINE void load(const float* b) {
    value = load_vector<V>(b);
    pin(value);
  }
  EFFNET_INLINE void multiply_add(const Row<float>& row, Float& sum) const { sum = row.value * value + sum; }
#if defined(__AVX512F__)
  EFFNET_INLINE void multiply_add(const Row<float>& row, HalfFloat& sum) const {
    sum = narrow(row.value) * value + sum;
  }
#endif
};

// bfloat16: two elements and two rows at a time, which lie in memory as pairs.
#if defined(__AVX512BF16__)
template <>
struct Row<BFloat16> {
  Float value;
  EFFNET_INLINE explicit Row(const BFloat16* a) {
    int pair;
    std::memcpy(&pair, a, sizeof pair);
    value = (Float)_mm512_set1_epi32(pair);
    pin(value);
  }
};

template <class V>
struct Columns<BFloat16, V> {
  V value;
  EFFNET_INLINE void load(const BFloat16* b) {
    value = load_vector<V>(b);
    pin(value);
  }
  EFFNET_INLINE void multiply_add(const Row<BFloat16>& row, Float& sum) const {
    sum = (Float)_mm512_dpbf16_ps((__m512)sum, (__m512bh)row.value, (__m512bh)value);
  }
  EFFNET_INLINE void multiply_add(const Row<BFloat16>& row, HalfFloat& sum) const {
    sum = (HalfFloat)_mm256_dpbf16_ps((__m256)sum, (__m256bh)narrow(row.value), (__m256bh)value);
  }
};
#else
template <>
struct Row<BFloat16> {
  Float first, second;
  EFFNET_INLINE explicit Row(const BFloat16* a) : first(as_float(a[0]) - Float{}), second(as_float(a[1]) - Float{}) {}
};

template <class V>
struct Columns<BFloat16, V> {
  V first, second;
  EFFNET_INLINE void load(const BFloat16* b) {
    const auto pairs = bits_of(load_vector<V>(b));
    first = (V)(pairs << 16);
    second = (V)(pairs & 0xffff0000u);
  }
  EFFNET_INLINE void multiply_add(const Row<BFloat16>& row, Float& sum) const {
    sum = row.first * first + sum;
    sum = row.second * second + sum;
  }
#if defined(__AVX512F__)
  EFFNET_INLINE void multiply_add(const Row<BFloat16>& row, HalfFloat& sum) const {
    sum = narrow(row.first) * first + sum;
    sum = narrow(row.second) * second + sum;
  }
#endif
};
#endif

template <class T>
EFFNET_INLINE void fetch(const T* from, int64_t elements) {
  const char* line = reinterpret_cast<const char*>(from);
  const char* const end = reinterpret_cast<const char*>(from + elements);
  for (; line < end; line += 64) __builtin_prefetch(line, 0, 2);
}

template <class T, int kRows, int kVectors, bool kHalf>
void multiply_tile(const Tile<T>& tile) {
  constexpr int kPair = kIsHalf<T> ? 2 : 1;
  Float sums[kRows][kVectors];
  HalfFloat half_sums[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Float{};
    half_sums[r] = HalfFloat{};
  }
  const T* b = tile.b;
  for (int64_t s = 0; s < tile.segment_count; ++s) {
    const Segment segment = tile.segments[s];
    const int64_t stride = segment.pixel_stride;
    const T* a = tile.a + segment.offset + tile.first * stride;
    const T* const end = a + segment.length;
    // A little with every segment: all of it at once is more than can be under way, and the tile would wait.
    if (tile.ahead != nullptr) {
      fetch(tile.ahead + tile.ahead_segments[s].offset + tile.ahead_first * stride, kRows * stride);
    }
    for (; a != end; a += kPair) {
      Columns<T, Float> columns[kVectors];
      Columns<T, HalfFloat> half;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) columns[v].load(b + kPair * v * kLanes);
      if constexpr (kHalf) half.load(b + kPair * kVectors * kLanes);
      b += tile.b_stride;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Row<T> row(a + r * stride);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) columns[v].multiply_add(row, sums[r][v]);
        if constexpr (kHalf) half.multiply_add(row, half_sums[r]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    float* out = tile.out + r * kPanel;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, Vec(sums[r][v]));
    if constexpr (kHalf) {
      std::memcpy(out + kVectors * kLanes, &half_sums[r], sizeof(HalfFloat));
      std::memset(out + kVectors * kLanes + kLanes / 2, 0, sizeof(float) * kLanes / 2);
    }
  }
}

template <class T, int kRows>
void multiply_rows(const Tile<T>& tile, int vectors, bool half) {
  if constexpr (kHalfVectors) {
    if (half) {
      switch (vectors) {
        case 2:
          return multiply_tile<T, kRows, 1, true>(tile);
        case 3:
          return multiply_tile<T, kRows, 2, true>(tile);
      }
    }
  }
  switch (vectors) {
    case 1:
      return multiply_tile<T, kRows, 1, false>(tile);
    case 2:
      return multiply_tile<T, kRows, 2, false>(tile);
    case 3:
      return multiply_tile<T, kRows, 3, false>(tile);
  }
}

template <class T>
void multiply_all(const T* a, const Gemm& gemm, int64_t first, int pixels, const void* weights, int64_t panel,
                  float* out) {
  constexpr int kPair = kIsHalf<T> ? 2 : 1;
  const int64_t width = gemm.panels.width(panel), last = (gemm.panels.first(panel) + width) * kGroup;
  const T* b = panel_of<T>(gemm, weights, panel);
  const int vectors = static_cast<int>(width * kGroup / kLanes);
  const int tiles = (pixels + kTileRows - 1) / kTileRows, parts = (vectors + 2) / 3;
  int vector = 0;
  for (int part = 0; part < parts; ++part) {
    const int vector_end = (part + 1) * vectors / parts;
    const bool half = part + 1 == parts && last - gemm.channels >= kGroup / 2;
    int row = 0;
    for (int i = 0; i < tiles; ++i) {
      // Tiles of nearly equal height: 49 rows are 7 times 7, not 6 times 8 and 1, which would wait for its sums.
      const int row_end = (i + 1) * pixels / tiles;
      const Tile<T> tile{a,
                         gemm.segments,
                         gemm.segment_count,
                         first + row,
                         b + vector * kLanes * kPair,
                         width * kGroup * kPair,
                         out + row * kPanel + vector * kLanes,
                         part == 0 ? static_cast<const T*>(gemm.ahead) : nullptr,
                         gemm.ahead_segments,
                         first + row + gemm.pixels_ahead};
      with_tile_rows(row_end - row, [&](auto rows) { multiply_rows<T, rows.value>(tile, vector_end - vector, half); });
      row = row_end;
    }
    vector = vector_end;
  }
}

}  // namespace

void multiply(const float* a, const Gemm& gemm, int64_t first, int pixels, const void* weights, int64_t panel,
              float* out) {
  multiply_all(a, gemm, first, pixels, weights, panel, out);
}

void multiply(const BFloat16* a, const Gemm& gemm, int64_t first, int pixels, const void* weights, int64_t panel,
              float* out) {
#if defined(EFFNET_HAVE_AMX)
  if (gemm.tiles.full > 0) {
    return amx::multiply(a, gemm, first, pixels, panel_of<BFloat16>(gemm, weights, panel), gemm.panels.width(panel),
                         out);
  }
#endif
  multiply_all(a, gemm, first, pixels, weights, panel, out);
}

}  // namespace effnet::cpu::EFFNET_ISA
