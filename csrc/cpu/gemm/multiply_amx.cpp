#include "cpu/gemm/multiply_amx.h"

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#if defined(EFFNET_HAVE_AMX)
#include "cpu/isa/amx.h"
#endif

namespace effnet::cpu::amx {
namespace {

constexpr int32_t kFullStep = 32;  // elements of bfloat16 in a row of a tile

// Segments of one length.
struct Length {
  int32_t length;
  int64_t count;
};

}  // namespace

TileSteps steps_of(const Segment* segments, int64_t count) {
  // Chunks of channels have two widths, the last one may be cut.
  std::array<Length, 4> lengths{};
  int64_t known = 0, depth = 0;
  for (int64_t s = 0; s < count; ++s) {
    const int32_t length = segments[s].length;
    if (length % 2 != 0) return {};
    int64_t i = 0;
    while (i < known && lengths[i].length != length) ++i;
    if (i == static_cast<int64_t>(lengths.size())) return {};
    lengths[i].length = length, ++lengths[i].count;
    known = std::max(known, i + 1), depth += length;
  }
  // Fewest steps; among those, one size of step, which leaves registers for twice the pixels.
  TileSteps best{};
  int64_t least = INT64_MAX;
  for (int32_t full = kFullStep; full >= 2; full -= 2) {
    int32_t rest = 0;
    int64_t steps = 0;
    bool fits = true;
    for (int64_t i = 0; i < known; ++i) {
      const int32_t left = lengths[i].length % full;
      fits = fits && (left == 0 || rest == 0 || left == rest);
      rest = left == 0 ? rest : left;
      steps += lengths[i].count * divide_up(lengths[i].length, full);
    }
    if (!fits || steps > least || (steps == least && (rest != 0 || best.rest == 0))) continue;
    best = {static_cast<int16_t>(full), static_cast<int16_t>(rest)}, least = steps;
  }
  // In cycles, for 32 pixels and 48 columns: a step takes 6 products of 16; zeroing and storing sums, waiting for the
  // last product and configuring some 250. The avx512bf16 kernel takes 32 * 3 / 2 dot products for two elements of K,
  // two a cycle. Counted from the manuals, not measured.
  return 96 * least + 250 <= 24 * depth ? best : TileSteps{};
}

#if defined(EFFNET_HAVE_AMX)
namespace {

// Tiles 0 to 5 are sums; 4 and 5 are operands where K has two sizes of steps.
constexpr int kRestA = 4, kRestB = 5, kFullA = 6, kFullB = 7;
constexpr int kMostColumns = 3;  // tiles of 16 columns in a panel
static_assert(kGroup * sizeof(float) == kTileBytes && kPanelGroups == kMostColumns);

struct Shape {
  int rows;
  TileSteps steps;
  bool operator==(const Shape& other) const {
    return rows == other.rows && steps.full == other.steps.full && steps.rest == other.steps.rest;
  }
};

// What this thread's tiles are configured for; rows = 0: not in use.
thread_local Shape configured{};

void configure(const Shape& shape) {
  if (shape == configured) return;
  TileConfig config{};
  config.palette = 1;
  const auto set = [&](int tile, int rows, int bytes) {
    config.rows[tile] = static_cast<uint8_t>(rows), config.row_bytes[tile] = static_cast<uint16_t>(bytes);
  };
  for (int tile = 0; tile < 6; ++tile) set(tile, shape.rows, kTileBytes);
  set(kFullA, shape.rows, 2 * shape.steps.full);
  set(kFullB, shape.steps.full / 2, kTileBytes);
  if (shape.steps.rest > 0) {
    set(kRestA, shape.rows, 2 * shape.steps.rest);
    set(kRestB, shape.steps.rest / 2, kTileBytes);
  }
  load_config(config);
  configured = shape;
}

template <int kCount, class F>
EFFNET_INLINE void unrolled(F f) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, i>()), ...);
  }(std::make_integer_sequence<int, kCount>());
}

struct Product {
  const char* a;  // of the first pixel of the first tile, without a segment's offset
  const Gemm& gemm;
  int64_t first;     // pixel
  int64_t second;    // the second tile's first pixel, counted from the first tile's
  int64_t pixels;    // of all tiles
  const char* b;     // rows in pairs
  int64_t b_stride;  // bytes from pair to pair
  float* out;        // of the first tile
};

// One step of K; sums of pixel tile p and column tile q are tile 3 p + q.
template <int kPixels, int kColumns, int kA, int kB>
EFFNET_INLINE void multiply_step(const char* a, int64_t a_stride, int64_t a_second, const char* b, int64_t b_stride) {
  unrolled<kColumns>([&](auto column) __attribute__((always_inline)) {
    load_tile<kB>(b + column * kTileBytes, b_stride);
    unrolled<kPixels>([&](auto turn) __attribute__((always_inline)) {
      // To and fro, so that the pixels at the turn are still there.
      constexpr int pixel = column % 2 == 0 ? turn : kPixels - 1 - turn;
      if constexpr (column == 0 || turn > 0) load_tile<kA>(a + pixel * a_second, a_stride);
      multiply_add_tiles<kMostColumns * pixel + column, kA, kB>();
    });
  });
}

// As the other kernel does, with every segment.
EFFNET_INLINE void fetch(const char* line, int64_t bytes) {
  for (const char* const end = line + bytes; line < end; line += 64) __builtin_prefetch(line, 0, 2);
}

template <int kPixels, int kColumns, bool kRest>
void multiply_tiles(const Product& p) {
  static_assert(!kRest || kPixels == 1, "tiles 4 and 5 can't be sums as well");
  constexpr int64_t kElement = 2;
  const auto each_sum = [](auto f) __attribute__((always_inline)) {
    unrolled<kPixels>([&](auto pixel) __attribute__((always_inline)) {
      unrolled<kColumns>([&](auto column) __attribute__((always_inline)) { f(pixel, column); });
    });
  };
  each_sum([](auto pixel, auto column) __attribute__((always_inline)) { zero_tile<kMostColumns * pixel + column>(); });
  const int64_t full = p.gemm.tiles.full, rest = p.gemm.tiles.rest;
  const char* b = p.b;
  for (int64_t s = 0; s < p.gemm.segment_count; ++s) {
    const Segment& segment = p.gemm.segments[s];
    const int64_t stride = segment.pixel_stride * kElement, second = p.second * stride;
    const char* a = p.a + segment.offset * kElement + p.first * stride;
    if (p.gemm.ahead != nullptr) {
      const char* ahead = static_cast<const char*>(p.gemm.ahead) + p.gemm.ahead_segments[s].offset * kElement;
      fetch(ahead + (p.first + p.gemm.pixels_ahead) * stride, p.pixels * stride);
    }
    int64_t left = segment.length;
    for (; left >= full; left -= full) {
      multiply_step<kPixels, kColumns, kFullA, kFullB>(a, stride, second, b, p.b_stride);
      a += full * kElement, b += full / 2 * p.b_stride;
    }
    if constexpr (kRest) {
      if (left == 0) continue;
      multiply_step<kPixels, kColumns, kRestA, kRestB>(a, stride, second, b, p.b_stride);
      b += rest / 2 * p.b_stride;
    }
  }
  each_sum([&](auto pixel, auto column) __attribute__((always_inline)) {
    store_tile<kMostColumns * pixel + column>(p.out + pixel * p.second * kPanel + column * kGroup,
                                              kPanel * sizeof(float));
  });
}

template <int kPixels, bool kRest>
void multiply_columns(const Product& p, int64_t width) {
  switch (width) {
    case 1:
      return multiply_tiles<kPixels, 1, kRest>(p);
    case 2:
      return multiply_tiles<kPixels, 2, kRest>(p);
    case 3:
      return multiply_tiles<kPixels, 3, kRest>(p);
  }
}

}  // namespace

void multiply(const void* a, const Gemm& gemm, int64_t first, int64_t pixels, const void* panel, int64_t width,
              float* out) {
  // Less than a tile has its own configuration. More is whole tiles, the last of which begins early enough: what two of
  // them compute is the same.
  const int64_t rows = std::min<int64_t>(pixels, kTileRows), tiles = divide_up(pixels, kTileRows);
  configure({static_cast<int>(rows), gemm.tiles});
  const auto start = [&](int64_t tile) { return std::min(tile * kTileRows, pixels - rows); };
  Product product{static_cast<const char*>(a),     gemm, first, 0, rows, static_cast<const char*>(panel),
                  width * kGroup * 2 * int64_t{2}, out};
  for (int64_t tile = 0; tile < tiles;) {
    const bool two = gemm.tiles.rest == 0 && tile + 1 < tiles;
    product.first = first + start(tile), product.out = out + start(tile) * kPanel;
    product.second = two ? start(tile + 1) - start(tile) : 0;
    product.pixels = product.second + rows;
    if (two) {
      multiply_columns<2, false>(product, width);
    } else if (gemm.tiles.rest == 0) {
      multiply_columns<1, false>(product, width);
    } else {
      multiply_columns<1, true>(product, width);
    }
    tile += two ? 2 : 1;
  }
}

void release() {
  if (configured.rows == 0) return;
  release_tiles();
  configured = {};
}
#endif

}  // namespace effnet::cpu::amx
