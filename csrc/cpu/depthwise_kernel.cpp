// Depthwise convolution over NHWC, one task at a time; compiled once per instruction set.
//
// Input rows pass once through the prologue into a ring of `kernel` fp32 rows that stays in cache, already padded left
// and right, so that the inner loop has no predicate. Rows outside the image are left out of the sum altogether.
#include <algorithm>

#include "depthwise.h"
#include "vec.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

// Output columns accumulated in registers at once: kMaxColumns accumulators, `kernel` weights and one input fit the 16
// registers of AVX2 up to 7x7, and eight independent chains hide the latency of a fused multiply-add.
constexpr int kMaxColumns = 8;

// What one output row needs of the ring: the input rows inside the image and the weights that go with them.
struct Taps {
  int count;
  const float* rows[7];
  const float* weights[7];
};

template <int kKernel, int kStride, int kColumns>
inline void convolve_block(const Taps& taps, int64_t column, int64_t chunk, float* out) {
  Vec sums[kColumns];
  for (int i = 0; i < kColumns; ++i) sums[i] = Vec(0.0f);
  for (int tap = 0; tap < taps.count; ++tap) {
    const float* row = taps.rows[tap] + column * kStride * chunk;
    Vec weights[kKernel];
#pragma GCC unroll 8
    for (int k = 0; k < kKernel; ++k) weights[k] = load(taps.weights[tap] + k * chunk);
#pragma GCC unroll 32
    for (int j = 0; j < (kColumns - 1) * kStride + kKernel; ++j) {
      const Vec x = load(row + j * chunk);
#pragma GCC unroll 8
      for (int i = 0; i < kColumns; ++i) {
        const int k = j - i * kStride;
        if (k >= 0 && k < kKernel) sums[i] = multiply_add(x, weights[k], sums[i]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kColumns; ++i) store(out + (column + i) * kLanes, sums[i]);
}

// One output row of kLanes channels: out[columns][kLanes].
template <int kKernel, int kStride>
void convolve_row(const Taps& taps, int64_t columns, int64_t chunk, float* out) {
  const int64_t blocks = (columns + kMaxColumns - 1) / kMaxColumns;
  int64_t column = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    // Nearly equal blocks: 12 columns are 6 + 6 rather than 8 + 4.
    const int64_t end = (block + 1) * columns / blocks;
    switch (end - column) {
#define EFFNET_COLUMNS(n)                                                    \
  case n:                                                                    \
    convolve_block<kKernel, kStride, n>(taps, column, chunk, out);           \
    break;
      EFFNET_COLUMNS(1)
      EFFNET_COLUMNS(2)
      EFFNET_COLUMNS(3)
      EFFNET_COLUMNS(4)
      EFFNET_COLUMNS(5)
      EFFNET_COLUMNS(6)
      EFFNET_COLUMNS(7)
      EFFNET_COLUMNS(8)
#undef EFFNET_COLUMNS
    }
    column = end;
  }
}

// to[columns][chunk] = act(scale * from + shift), channels at `from_stride` apart per column; lanes past `channels` are
// computed from zeros and never reach y.
template <class T, Activation kAct, bool kPlain>
void load_row(const T* from, int64_t from_stride, int64_t columns, int64_t channels, int64_t chunk, const float* scale,
              const float* shift, float* to) {
  for (int64_t column = 0; column < columns; ++column) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int count = static_cast<int>(std::min<int64_t>(kLanes, channels - c));
      Vec x = load_lanes(from + column * from_stride + c, count);
      if constexpr (!kPlain) x = activate<kAct>(multiply_add(x, load(scale + c), load(shift + c)));
      store(to + column * chunk + c, x);
    }
  }
}

// y[columns] = act(scale * row + shift) for `count` <= kLanes channels; returns the sum of y before rounding.
template <class T, Activation kAct>
Vec store_row(const float* row, int64_t columns, int64_t y_stride, int count, Vec scale, Vec shift, T* y) {
  Vec sum(0.0f);
  if (count == kLanes) {
    for (int64_t column = 0; column < columns; ++column) {
      const Vec value = activate<kAct>(multiply_add(load(row + column * kLanes), scale, shift));
      sum = sum + value;
      store(y + column * y_stride, value);
    }
  } else {
    for (int64_t column = 0; column < columns; ++column) {
      const Vec value = activate<kAct>(multiply_add(load(row + column * kLanes), scale, shift));
      sum = sum + value;
      store_partial(y + column * y_stride, value, count);
    }
  }
  return sum;
}

template <class T>
using LoadRow = decltype(&load_row<T, Activation::kNone, true>);
template <class T>
using StoreRow = decltype(&store_row<T, Activation::kNone>);
using ConvolveRow = decltype(&convolve_row<3, 1>);

ConvolveRow select_convolve_row(int kernel, int stride) {
  if (stride == 1) return kernel == 3 ? convolve_row<3, 1> : kernel == 5 ? convolve_row<5, 1> : convolve_row<7, 1>;
  return kernel == 3 ? convolve_row<3, 2> : kernel == 5 ? convolve_row<5, 2> : convolve_row<7, 2>;
}

template <class T>
LoadRow<T> select_load_row(Activation act, bool has_affine) {
  if (act == Activation::kNone && !has_affine) return load_row<T, Activation::kNone, true>;
  return with_activation(act, [](auto known) -> LoadRow<T> { return load_row<T, known.value, false>; });
}

template <class T>
StoreRow<T> select_store_row(Activation act) {
  return with_activation(act, [](auto known) -> StoreRow<T> { return store_row<T, known.value>; });
}

// weights[kernel * kernel][chunk] in fp32, zero past `channels`.
template <class W>
void pack_weights(const DepthwiseParams& p, int64_t first_channel, int64_t channels, int64_t chunk, float* weights) {
  const W* from = static_cast<const W*>(p.weight) + first_channel * p.weight_channel_stride;
  for (int row = 0; row < p.kernel; ++row) {
    for (int col = 0; col < p.kernel; ++col) {
      const W* tap = from + row * p.weight_row_stride + col * p.weight_col_stride;
      float* to = weights + (row * p.kernel + col) * chunk;
      for (int64_t c = 0; c < channels; ++c) to[c] = as_float(tap[c * p.weight_channel_stride]);
      for (int64_t c = channels; c < chunk; ++c) to[c] = 0.0f;
    }
  }
}

void copy_or_fill(const float* from, float otherwise, int64_t channels, int64_t chunk, float* to) {
  for (int64_t c = 0; c < chunk; ++c) to[c] = c < channels && from != nullptr ? from[c] : otherwise;
}

// Where a thread's scratch memory goes.
struct Scratch {
  float *ring, *weights, *in_scale, *in_shift, *scale, *shift, *sums, *row;

  Scratch(const DepthwiseParams& p, const DepthwisePlan& plan, float* memory) {
    const auto take = [&memory](int64_t floats) {
      float* taken = memory;
      memory += floats;
      return taken;
    };
    ring = take(p.kernel * plan.ring_columns * plan.chunk);
    weights = take(int64_t{p.kernel} * p.kernel * plan.chunk);
    in_scale = take(plan.chunk);
    in_shift = take(plan.chunk);
    scale = take(plan.chunk);
    shift = take(plan.chunk);
    sums = take(plan.chunk);
    row = take(p.out_width * kLanes);
  }
};

template <class T>
void run_task(const DepthwiseParams& p, const DepthwisePlan& plan, int64_t task, const Scratch& scratch) {
  const int64_t chunk = plan.chunk;
  const int64_t first_channel = task % plan.chunks * chunk;
  const int64_t band = task / plan.chunks % plan.bands;
  const int64_t image = task / plan.chunks / plan.bands;
  const int64_t channels = std::min(chunk, p.channels - first_channel);
  const int64_t first_row = band * plan.band_rows;
  const int64_t last_row = std::min(first_row + plan.band_rows, p.out_height);

  const ConvolveRow convolve = select_convolve_row(p.kernel, p.stride);
  const LoadRow<T> load_input = select_load_row<T>(p.in_act, p.in_scale != nullptr || p.in_shift != nullptr);
  const StoreRow<T> store_output = select_store_row<T>(p.act);

  if (p.weight_dtype == DType::kFloat32) {
    pack_weights<float>(p, first_channel, channels, chunk, scratch.weights);
  } else {
    pack_weights<BFloat16>(p, first_channel, channels, chunk, scratch.weights);
  }
  const auto part = [&](const float* all) { return all == nullptr ? nullptr : all + first_channel; };
  copy_or_fill(part(p.in_scale), 1.0f, channels, chunk, scratch.in_scale);
  copy_or_fill(part(p.in_shift), 0.0f, channels, chunk, scratch.in_shift);
  copy_or_fill(part(p.scale), 1.0f, channels, chunk, scratch.scale);
  copy_or_fill(part(p.shift), 0.0f, channels, chunk, scratch.shift);
  for (int64_t c = 0; c < chunk; ++c) scratch.sums[c] = 0.0f;

  const auto ring_row = [&](int64_t row) { return scratch.ring + row % p.kernel * plan.ring_columns * chunk; };
  // Input columns [0, used_columns) appear in the ring after pad_left columns; the others there are zero and stay so.
  const int64_t left = std::min(p.pad_left, plan.ring_columns);
  const int64_t used_columns = std::min(p.width, plan.ring_columns - left);
  const int64_t right = plan.ring_columns - left - used_columns;
  for (int row = 0; row < p.kernel; ++row) {
    std::memset(ring_row(row), 0, sizeof(float) * left * chunk);
    std::memset(ring_row(row) + (left + used_columns) * chunk, 0, sizeof(float) * right * chunk);
  }

  const T* x = static_cast<const T*>(p.x) + image * p.x_batch_stride + first_channel;
  T* y = static_cast<T*>(p.y) + image * p.out_height * p.out_width * p.channels + first_channel;
  int64_t next_input_row = std::max<int64_t>(0, first_row * p.stride - p.pad_top);

  for (int64_t out_row = first_row; out_row < last_row; ++out_row) {
    const int64_t top = out_row * p.stride - p.pad_top;
    const int64_t bottom = std::min(top + p.kernel, p.height);
    for (; next_input_row < bottom; ++next_input_row) {
      load_input(x + next_input_row * p.x_row_stride, p.x_col_stride, used_columns, channels, chunk, scratch.in_scale,
                 scratch.in_shift, ring_row(next_input_row) + left * chunk);
    }
    const int64_t first_valid = std::max<int64_t>(top, 0);
    for (int64_t c = 0; c < channels; c += kLanes) {
      Taps taps{};
      for (int64_t row = first_valid; row < bottom; ++row) {
        taps.rows[taps.count] = ring_row(row) + c;
        taps.weights[taps.count++] = scratch.weights + (row - top) * p.kernel * chunk + c;
      }
      convolve(taps, p.out_width, chunk, scratch.row);
      const int count = static_cast<int>(std::min<int64_t>(kLanes, channels - c));
      const Vec sum = store_output(scratch.row, p.out_width, p.channels, count, load(scratch.scale + c),
                                   load(scratch.shift + c), y + out_row * p.out_width * p.channels + c);
      store(scratch.sums + c, load(scratch.sums + c) + sum);
    }
  }
  if (p.pooled != nullptr) {
    float* sums = plan.partial_sums + (image * plan.bands + band) * p.channels + first_channel;
    for (int64_t c = 0; c < channels; ++c) sums[c] = scratch.sums[c];
  }
}

}  // namespace

void depthwise_tasks(const DepthwiseParams& p, const DepthwisePlan& plan, int64_t begin, int64_t end, float* memory) {
  const Scratch scratch(p, plan, memory);
  for (int64_t task = begin; task < end; ++task) {
    if (p.dtype == DType::kFloat32) {
      run_task<float>(p, plan, task, scratch);
    } else {
      run_task<BFloat16>(p, plan, task, scratch);
    }
  }
}

}  // namespace effnet::cpu::EFFNET_ISA
