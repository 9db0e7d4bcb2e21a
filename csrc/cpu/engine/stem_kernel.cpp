// The stem: a dense convolution of few channels from the caller's images; compiled once per instruction set.
#include "cpu/engine/rows.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

inline void put(float* to, float x) { *to = x; }
inline void put(BFloat16* to, float x) { *to = to_bfloat16(x); }

// One padded row of the stem's input, pixels of `tile_channels`.
template <class T, class X>
void load_stem_row(const Step& s, const X* x, T* to) {
  const int64_t columns = std::min(s.width, std::max<int64_t>(s.tile_columns - s.pad_left, 0));
  for (int64_t c = 0; c < s.tile_channels; ++c) {
    T* out = to + c;
    for (int64_t column = 0; column < s.pad_left; ++column) out[column * s.tile_channels] = T{};
    out += s.pad_left * s.tile_channels;
    if (c < s.in_channels) {
      const X* in = x + c * s.x_strides[1];
      const int64_t stride = s.x_strides[3];
      for (int64_t column = 0; column < columns; ++column) {
        put(out + column * s.tile_channels, as_float(in[column * stride]));
      }
    } else {
      for (int64_t column = 0; column < columns; ++column) out[column * s.tile_channels] = T{};
    }
    for (int64_t column = columns; column < s.tile_columns - s.pad_left; ++column) {
      out[column * s.tile_channels] = T{};
    }
  }
}

template <class T>
void stem_rows(const Step& s, int64_t item, float* scratch) {
  const int64_t band = item % s.bands, image = item / s.bands;
  const int64_t first = band * s.band_rows, end = std::min(first + s.band_rows, s.out_height);
  const int64_t pitch = s.tile_columns * s.tile_channels;
  float* block = scratch;
  T* tile = reinterpret_cast<T*>(scratch + kBlockPixels * kPanel);
  const int64_t top = first * s.stride - s.pad_top, rows = (end - first - 1) * s.stride + s.kernel;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t y = top + row;
    if (y < 0 || y >= s.height) {
      std::fill_n(tile + row * pitch, pitch, T{});
    } else {
      with_storage(s.x_dtype, [&](auto stored) {
        const auto* x = static_cast<const decltype(stored)*>(s.in.data);
        load_stem_row(s, x + image * s.x_strides[0] + y * s.x_strides[2], tile + row * pitch);
      });
    }
  }
  for (int64_t row = first; row < end; ++row) {
    for (int64_t panel = 0; panel < s.gemm.panels.count; ++panel) {
      product_rows(s, s.gemm, tile + (row - first) * s.stride * pitch, row * s.out_width, s.gemm.weights, image, panel,
                   row * s.out_width, (row + 1) * s.out_width, block);
    }
  }
}

}  // namespace

void stem_item(const Step& step, int64_t item, float* scratch) {
  with_storage(step.dtype, [&](auto stored) { stem_rows<decltype(stored)>(step, item, scratch); });
}

}  // namespace effnet::cpu::EFFNET_ISA
