// Every step of a network but expansion and depthwise; compiled once per instruction set.
#include <algorithm>

#include "network_act.h"
#include "network_kernels.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

// --- Rows of a product to memory -----------------------------------------------------------------------------------

// y[pixels] = act(block + bias) + residual, whole groups.
template <class T, Activation kAct>
void store_block(const float* block, int64_t pixels, int64_t width, const float* bias, const T* residual,
                 int64_t residual_stride, T* y, int64_t stride) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t c = 0; c < width * kGroup; c += kLanes) {
      Vec value = quick_activate<kAct, kIsHalf<T>>(load(block + pixel * kPanel + c) + load(bias + c));
      if (residual != nullptr) value = value + load(residual + pixel * residual_stride + c);
      store(y + pixel * stride + c, value);
    }
  }
}

// The same into the caller's tensor, `channels` of them, fp32.
template <class T, Activation kAct>
void store_final(const float* block, int64_t pixels, int64_t channels, const float* bias, const T* residual,
                 int64_t residual_stride, float* y, int64_t stride) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      Vec value = quick_activate<kAct, kIsHalf<T>>(load(block + pixel * kPanel + c) + load(bias + c));
      if (residual != nullptr) value = value + load(residual + pixel * residual_stride + c);
      store_lanes(y + pixel * stride + c, value, static_cast<int>(std::min<int64_t>(kLanes, channels - c)));
    }
  }
}

// Pixels [first, end) of one panel; `a` and its segments start at pixel `shift`.
template <class T>
void product_rows(const Step& s, const Gemm& gemm, const T* a, int64_t shift, const void* weights, int64_t image,
                  int64_t panel, int64_t first, int64_t end, float* block) {
  const int64_t width = s.gemm.panels.width(panel), channel = s.gemm.panels.first(panel) * kGroup;
  const float* bias = s.gemm.bias + channel;
  const T* residual = s.residual.data == nullptr
                          ? nullptr
                          : static_cast<const T*>(s.residual.data) + image * s.residual.image_stride + channel;
  const auto store_rows = with_activation(s.gemm.act, [](auto known) { return &store_block<T, known.value>; });
  const auto store_last = with_activation(s.gemm.act, [](auto known) { return &store_final<T, known.value>; });
  const int64_t blocks = divide_up(end - first, kBlockPixels);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t from = first + i * (end - first) / blocks, to = first + (i + 1) * (end - first) / blocks;
    multiply(a, gemm, from - shift, static_cast<int>(to - from), weights, panel, block);
    const int64_t at = image * s.out.image_stride + from * s.out.pixel_stride + channel;
    const T* other = residual == nullptr ? nullptr : residual + from * s.residual.pixel_stride;
    if (s.final_channels > 0) {
      store_last(block, to - from, std::min(width * kGroup, s.final_channels - channel), bias, other,
                 s.residual.pixel_stride, static_cast<float*>(s.out.data) + at, s.out.pixel_stride);
    } else {
      store_rows(block, to - from, width, bias, other, s.residual.pixel_stride, static_cast<T*>(s.out.data) + at,
                 s.out.pixel_stride);
    }
  }
}

// --- Stem ----------------------------------------------------------------------------------------------------------

inline void put(float* to, float x) { *to = x; }
inline void put(BFloat16* to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  to->bits = static_cast<uint16_t>(x == x ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : (bits >> 16) | 0x40u);
}

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
void stem_item(const Step& s, int64_t item, float* scratch) {
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
    } else if (s.x_dtype == DType::kFloat32) {
      load_stem_row(s, static_cast<const float*>(s.in.data) + image * s.x_strides[0] + y * s.x_strides[2],
                    tile + row * pitch);
    } else {
      load_stem_row(s, static_cast<const BFloat16*>(s.in.data) + image * s.x_strides[0] + y * s.x_strides[2],
                    tile + row * pitch);
    }
  }
  for (int64_t row = first; row < end; ++row) {
    for (int64_t panel = 0; panel < s.gemm.panels.count; ++panel) {
      product_rows(s, s.gemm, tile + (row - first) * s.stride * pitch, row * s.out_width, s.gemm.weights, image, panel,
                   row * s.out_width, (row + 1) * s.out_width, block);
    }
  }
}

// --- Vectors -------------------------------------------------------------------------------------------------------

// out[kRows][kGroup] = in[kRows][depth] times one group of columns. Four sums over k modulo 4 for every number of rows,
// so that an image's result does not depend on the others of its batch.
template <class T, int kRows>
void multiply_vectors(const float* in, int64_t in_stride, int64_t depth, const T* weight, float* out,
                      int64_t out_stride) {
  for (int64_t c = 0; c < kGroup; c += kLanes) {
    Vec sums[kRows][4];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[r][i] = Vec(0.0f);
    }
    int64_t k = 0;
    for (; k + 4 <= depth; k += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Vec columns = load(weight + (k + i) * kGroup + c);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          sums[r][i] = multiply_add(Vec(in[r * in_stride + k + i]), columns, sums[r][i]);
        }
      }
    }
    for (; k < depth; ++k) {
      const Vec columns = load(weight + k * kGroup + c);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[r][0] = multiply_add(Vec(in[r * in_stride + k]), columns, sums[r][0]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      store(out + r * out_stride + c, (sums[r][0] + sums[r][1]) + (sums[r][2] + sums[r][3]));
    }
  }
}

template <Activation kAct>
void activate_group(const float* bias, float* x) {
  for (int64_t c = 0; c < kGroup; c += kLanes) store(x + c, quick_activate<kAct, false>(load(x + c) + load(bias + c)));
}

template <class T>
const T* group_weights(const Step& s, int64_t group) {
  return static_cast<const T*>(s.linear_weight) + group * s.linear_in * kGroup;
}

template <class T>
void squeeze_item(const Step& s, int64_t item, float* scratch) {
  const int64_t groups = divide_up(s.linear_out, kGroup), group = item % groups, image = item / groups;
  const int64_t channels = s.chunks.groups * kGroup;
  const Vec divisor(s.pool_divisor);
  const float* sums = s.sums + image * s.out_height * channels;
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vec sum = load(sums + c);
    for (int64_t row = 1; row < s.out_height; ++row) sum = sum + load(sums + row * channels + c);
    store(scratch + c, sum / divisor);
  }
  float* out = s.vectors_out + image * s.vectors_out_stride + group * kGroup;
  multiply_vectors<T, 1>(scratch, 0, s.linear_in, group_weights<T>(s, group), out, 0);
  with_activation(s.linear_act, [&](auto known) { activate_group<known.value>(s.linear_bias + group * kGroup, out); });
}

template <class T>
void excite_item(const Step& s, int64_t item) {
  const int64_t chunk = item % s.chunks.count, image = item / s.chunks.count;
  for (int64_t group = s.chunks.first(chunk); group < s.chunks.first(chunk) + s.chunks.width(chunk); ++group) {
    float* gate = s.vectors_out + image * s.vectors_out_stride + group * kGroup;
    multiply_vectors<T, 1>(s.vectors + image * s.vector_stride, 0, s.linear_in, group_weights<T>(s, group), gate, 0);
    with_activation(s.linear_act,
                    [&](auto known) { activate_group<known.value>(s.linear_bias + group * kGroup, gate); });
  }
}

template <class T>
void classify_item(const Step& s, int64_t item, float* scratch) {
  const T* weight = group_weights<T>(s, item);
  const int count = static_cast<int>(std::min<int64_t>(kGroup, s.linear_out - item * kGroup));
  for (int64_t image = 0; image < s.images; image += 4) {
    const float* in = s.vectors + image * s.vector_stride;
    const int64_t rows = std::min<int64_t>(4, s.images - image);
    switch (rows) {
      case 1:
        multiply_vectors<T, 1>(in, s.vector_stride, s.linear_in, weight, scratch, kGroup);
        break;
      case 2:
        multiply_vectors<T, 2>(in, s.vector_stride, s.linear_in, weight, scratch, kGroup);
        break;
      case 3:
        multiply_vectors<T, 3>(in, s.vector_stride, s.linear_in, weight, scratch, kGroup);
        break;
      default:
        multiply_vectors<T, 4>(in, s.vector_stride, s.linear_in, weight, scratch, kGroup);
    }
    for (int64_t r = 0; r < rows; ++r) {
      float* out = s.vectors_out + (image + r) * s.vectors_out_stride + item * kGroup;
      for (int c = 0; c < count; ++c) out[c] = scratch[r * kGroup + c] + s.linear_bias[item * kGroup + c];
    }
  }
}

// --- Projection and head -------------------------------------------------------------------------------------------

// The gate times pixels [first, end) of one image, chunk after chunk as `scaled_segments` say.
template <class T>
void scale_pixels(const Step& s, int64_t image, int64_t first, int64_t end, T* to) {
  const T* from = static_cast<const T*>(s.in.data) + image * s.in.image_stride;
  const float* gate = s.vectors + image * s.vector_stride;
  for (int64_t chunk = 0; chunk < s.chunks.count; ++chunk) {
    const int64_t width = s.chunks.width(chunk) * kGroup;
    const T* in = from + s.gemm.segments[chunk].offset + first * width;
    T* out = to + s.scaled_segments[chunk].offset;
    for (int64_t pixel = first; pixel < end; ++pixel) {
      for (int64_t c = 0; c < width; c += kLanes) store(out + c, load(in + c) * load(gate + c));
      in += width;
      out += width;
    }
    gate += width;
  }
}

void scale_rows(const float* from, int64_t rows, int64_t columns, const float* gate, float* to) {
  for (int64_t row = 0; row < rows; ++row) {
    const Vec factor(gate[row]);
    for (int64_t c = 0; c < columns; c += kLanes)
      store(to + row * columns + c, load(from + row * columns + c) * factor);
  }
}

inline Uint rounded(Vec x) {
  const Uint bits = (Uint)x.v;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// Rows lie in pairs. The gate of a row that only makes their number even multiplies zeros.
void scale_rows(const BFloat16* from, int64_t rows, int64_t columns, const float* gate, BFloat16* to) {
  for (int64_t row = 0; row < rows; row += 2) {
    const Vec even(gate[row]), odd(gate[row + 1]);
    for (int64_t c = 0; c < 2 * columns; c += 2 * kLanes) {
      Uint pairs;
      std::memcpy(&pairs, from + row * columns + c, sizeof pairs);
      const Vec first((Float)(pairs << 16)), second((Float)(pairs & 0xffff0000u));
      const Uint scaled = rounded(first * even) | (rounded(second * odd) << 16);
      std::memcpy(to + row * columns + c, &scaled, sizeof scaled);
    }
  }
}

template <class T>
void scale_weights(const Step& s, int64_t image, T* to) {
  for (int64_t panel = 0; panel < s.gemm.panels.count; ++panel) {
    const T* from = panel_of<T>(s.gemm, s.gemm.weights, panel);
    scale_rows(from, s.gemm.depth, s.gemm.panels.width(panel) * kGroup, s.vectors + image * s.vector_stride,
               to + (from - static_cast<const T*>(s.gemm.weights)));
  }
}

template <class T>
void project_item(const Step& s, int64_t item, ThreadState& state) {
  const int64_t pixels = s.out_height * s.out_width;
  const int64_t block = item % s.pixel_blocks, part = item / s.pixel_blocks % s.panel_parts;
  const int64_t image = item / s.pixel_blocks / s.panel_parts;
  const int64_t first = block * pixels / s.pixel_blocks, end = (block + 1) * pixels / s.pixel_blocks;
  const T* a = static_cast<const T*>(s.in.data) + image * s.in.image_stride;
  const void* weights = s.gemm.weights;
  int64_t shift = 0;
  Gemm gemm = s.gemm;
  float* product = state.scratch;
  T* scaled = reinterpret_cast<T*>(state.scratch + kBlockPixels * kPanel);
  if (s.scaling != Scaling::kNone) {
    const bool ready = state.scaled_step == &s && state.scaled_image == image && s.scaling != Scaling::kBlock;
    state.scaled_step = &s, state.scaled_image = image;
    if (s.scaling == Scaling::kWeights) {
      if (!ready) scale_weights(s, image, scaled);
      weights = scaled;
    } else {
      shift = s.scaling == Scaling::kBlock ? first : 0;
      if (!ready) scale_pixels(s, image, shift, s.scaling == Scaling::kBlock ? end : pixels, scaled);
      a = scaled, gemm.segments = s.scaled_segments;
    }
  }
  const int64_t panels = s.gemm.panels.count;
  for (int64_t panel = part * panels / s.panel_parts; panel < (part + 1) * panels / s.panel_parts; ++panel) {
    product_rows(s, gemm, a, shift, weights, image, panel, first, end, product);
  }
}

template <class T, Activation kAct>
void add_block(const float* block, int64_t pixels, int64_t width, const float* bias, float* sums) {
  for (int64_t c = 0; c < width * kGroup; c += kLanes) {
    const Vec shift = load(bias + c);
    Vec sum(0.0f);
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      sum = sum + quick_activate<kAct, kIsHalf<T>>(load(block + pixel * kPanel + c) + shift);
    }
    store(sums + c, load(sums + c) + sum);
  }
}

// One panel of the head of one image, of which only the mean is kept.
template <class T>
void pool_item(const Step& s, int64_t item, float* scratch) {
  const int64_t panels = s.gemm.panels.count, panel = item % panels, image = item / panels;
  const int64_t pixels = s.out_height * s.out_width, width = s.gemm.panels.width(panel);
  const int64_t channel = s.gemm.panels.first(panel) * kGroup, blocks = divide_up(pixels, kBlockPixels);
  const T* a = static_cast<const T*>(s.in.data) + image * s.in.image_stride;
  const auto add = with_activation(s.gemm.act, [](auto known) { return &add_block<T, known.value>; });
  float* sums = scratch + kBlockPixels * kPanel;
  std::fill_n(sums, kPanel, 0.0f);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t from = i * pixels / blocks, to = (i + 1) * pixels / blocks;
    multiply(a, s.gemm, from, static_cast<int>(to - from), s.gemm.weights, panel, scratch);
    add(scratch, to - from, width, s.gemm.bias + channel, sums);
  }
  float* out = s.vectors_out + image * s.vectors_out_stride + channel;
  const int64_t count = s.final_channels > 0 ? std::min(width * kGroup, s.final_channels - channel) : width * kGroup;
  for (int64_t c = 0; c < count; ++c) out[c] = sums[c] / s.pool_divisor;
}

template <class T>
void run_item(const Step& step, int64_t item, ThreadState& state) {
  float* scratch = state.scratch;
  switch (step.kind) {
    case StepKind::kStem:
      return stem_item<T>(step, item, scratch);
    case StepKind::kExpandDepthwise:
      return expand_depthwise_item(step, item, scratch);
    case StepKind::kSqueeze:
      return squeeze_item<T>(step, item, scratch);
    case StepKind::kExcite:
      return excite_item<T>(step, item);
    case StepKind::kProject:
      return project_item<T>(step, item, state);
    case StepKind::kPool:
      return pool_item<T>(step, item, scratch);
    case StepKind::kClassify:
      return classify_item<T>(step, item, scratch);
  }
}

}  // namespace

void network_item(const Step& step, int64_t item, ThreadState& state) {
  if (step.dtype == DType::kFloat32) {
    run_item<float>(step, item, state);
  } else {
    run_item<BFloat16>(step, item, state);
  }
}

}  // namespace effnet::cpu::EFFNET_ISA
