// Expansion and depthwise convolution as one step: the expanded rows go to a ring in the second-level cache and never
// to memory; compiled once per instruction set.
#include <algorithm>

#include "cpu/engine/items.h"
#include "cpu/isa/act.h"
#include "cpu/isa/column_blocks.h"
#include "cpu/isa/streaming.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

// Output columns accumulated in registers at once.
constexpr int kColumns = 8;

// Rows of the input that one output row needs, from the column under its first output column's first tap.
struct Rows {
  int count;
  const float* rows[7];
  const float* weights[7];
};

// Where a run of columns of one output row goes.
struct RowOut {
  Vec bias, sum;   // the sum of what was written
  void* y;         // the first column
  int64_t stride;  // elements from column to column
};

// y = act(sums) of `count` columns. The sums come in registers, so that the next columns' products begin while these
// activations are computed (3 x 3: 5 cycles a vector less than by way of memory).
using FinishColumns = void(Float, Float, Float, Float, Float, Float, Float, Float, int count, int64_t column,
                           RowOut& out);

template <class T, Activation kAct, bool kPastCaches>
void finish_columns(Float s0, Float s1, Float s2, Float s3, Float s4, Float s5, Float s6, Float s7, int count,
                    int64_t column, RowOut& out) {
  const int64_t stride = out.stride;
  T* y = static_cast<T*>(out.y) + column * stride;
  const Vec bias = out.bias;
  Vec sum = out.sum;
  const auto put = [&](Float x, int i) __attribute__((always_inline)) {
    const Vec value = activate_in_units<kAct, kIsHalf<T>>(Vec(x) + bias);
    sum = sum + value;
    if constexpr (kPastCaches) {
      store_past_caches(y + i * stride, value);
    } else {
      store(y + i * stride, value);
    }
  };
  put(s0, 0);
  if (count > 1) put(s1, 1);
  if (count > 2) put(s2, 2);
  if (count > 3) put(s3, 3);
  if (count > 4) put(s4, 4);
  if (count > 5) put(s5, 5);
  if (count > 6) put(s6, 6);
  if (count > 7) put(s7, 7);
  out.sum = sum;
}

template <int kKernel, int kStride, int kCount>
inline __attribute__((always_inline)) void convolve_columns(const Rows& taps, int64_t column, FinishColumns* finish,
                                                            RowOut& out) {
  static_assert(kColumns == 8, "as many as FinishColumns takes");
  Vec sums[kColumns];
#pragma GCC unroll 8
  for (int i = 0; i < kColumns; ++i) sums[i] = Vec(0.0f);
  for (int tap = 0; tap < taps.count; ++tap) {
    const float* row = taps.rows[tap] + column * kStride * kGroup;
    Vec weights[kKernel];
#pragma GCC unroll 8
    for (int k = 0; k < kKernel; ++k) weights[k] = load(taps.weights[tap] + k * kGroup);
#pragma GCC unroll 32
    for (int j = 0; j < (kCount - 1) * kStride + kKernel; ++j) {
      Vec x = load(row + j * kGroup);
      keep_in_register(x);
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) {
        const int k = j - i * kStride;
        if (k >= 0 && k < kKernel) sums[i] = multiply_add(x, weights[k], sums[i]);
      }
    }
  }
  finish(sums[0].v, sums[1].v, sums[2].v, sums[3].v, sums[4].v, sums[5].v, sums[6].v, sums[7].v, kCount, column, out);
}

template <int kKernel, int kStride>
void convolve(const Rows& taps, int64_t columns, FinishColumns* finish, RowOut& out) {
  for_column_blocks<kColumns>(columns, [&](int64_t column, auto count) __attribute__((always_inline)) {
    convolve_columns<kKernel, kStride, count.value>(taps, column, finish, out);
  });
}

using Convolve = decltype(&convolve<3, 1>);

Convolve select_convolve(int kernel, int64_t stride) {
  if (stride == 1) return kernel == 3 ? convolve<3, 1> : kernel == 5 ? convolve<5, 1> : convolve<7, 1>;
  return kernel == 3 ? convolve<3, 2> : kernel == 5 ? convolve<5, 2> : convolve<7, 2>;
}

// Whether whole lines are written, which can go past the caches at once.
template <class T>
constexpr bool kWholeLines = !kIsHalf<T> && kVectorBytes == 64;

template <class T>
FinishColumns* select_finish(Activation act, bool stream) {
  if (kWholeLines<T> && stream) {
    return with_activation(act, [](auto known) { return &finish_columns<T, known.value, kWholeLines<T>>; });
  }
  return with_activation(act, [](auto known) { return &finish_columns<T, known.value, false>; });
}

// One row's run of expanded pixels into the ring: to[width groups][ring plane], from[pixels][kPanel].
template <Activation kAct, bool kCoarse>
void activate_columns(const float* from, int64_t pixels, int64_t width, const float* bias, float* to, int64_t plane) {
  for (int64_t group = 0; group < width; ++group) {
    for (int64_t c = 0; c < kGroup; c += kLanes) {
      const Vec shift = load(bias + group * kGroup + c);
      const float* in = from + group * kGroup + c;
      float* out = to + group * plane + c;
      for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        store(out + pixel * kGroup, activate_in_units<kAct, kCoarse>(load(in + pixel * kPanel) + shift));
      }
    }
  }
}

template <class T>
class Item {
 public:
  Item(const Step& s, int64_t item, float* scratch) : s_(s), ring_(scratch) {
    chunk_ = item % s.chunks.count;
    band_ = item / s.chunks.count % s.bands;
    image_ = item / s.chunks.count / s.bands;
    width_ = s.chunks.width(chunk_), first_group_ = s.chunks.first(chunk_);
    plane_ = s.ring_rows * s.ring_columns * kGroup;
    block_ = ring_ + kPanelGroups * plane_;
    streamed_ = reinterpret_cast<T*>(block_ + kBlockPixels * kPanel);
    in_ = static_cast<const T*>(s.in.data) + image_ * s.in.image_stride;
    out_ =
        static_cast<T*>(s.out.data) + image_ * s.out.image_stride + first_group_ * kGroup * s.out_height * s.out_width;
  }

  void run() {
    clear_margins();
    const int64_t last = std::min((band_ + 1) * s_.band_rows, s_.out_height);
    int64_t next = std::max<int64_t>(band_ * s_.band_rows * s_.stride - s_.pad_top, 0);
    for (int64_t row = band_ * s_.band_rows; row < last; row += s_.step_rows) {
      const int64_t end = std::min(row + s_.step_rows, last);
      const int64_t bottom = std::min((end - 1) * s_.stride - s_.pad_top + s_.kernel, s_.height);
      if (next < bottom) fill(next, bottom);
      next = std::max(next, bottom);
      compute(row, end);
    }
    if (s_.stream) finish_stores();
  }

 private:
  float* ring_row(int64_t row) const { return ring_ + row % s_.ring_rows * s_.ring_columns * kGroup; }

  // Columns of the padding, which filling never touches.
  void clear_margins() {
    const int64_t left = std::min(s_.pad_left, s_.ring_columns), used = used_columns();
    for (int64_t group = 0; group < width_; ++group) {
      for (int64_t row = 0; row < s_.ring_rows; ++row) {
        float* at = ring_ + group * plane_ + row * s_.ring_columns * kGroup;
        std::memset(at, 0, sizeof(float) * left * kGroup);
        std::memset(at + (left + used) * kGroup, 0, sizeof(float) * (s_.ring_columns - left - used) * kGroup);
      }
    }
  }

  int64_t used_columns() const { return std::min(s_.width, std::max<int64_t>(s_.ring_columns - s_.pad_left, 0)); }

  void fill(int64_t first, int64_t end) {
    if (s_.gemm.segment_count == 0) {
      for (int64_t row = first; row < end; ++row) copy_row(row);
      return;
    }
    const int64_t pixels = end * s_.width, used = used_columns();
    const float* bias = s_.gemm.bias + first_group_ * kGroup;
    int64_t pixel = first * s_.width;
    const int64_t blocks = divide_up(pixels - pixel, kBlockPixels), start = pixel, total = pixels - pixel;
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t block_end = start + (i + 1) * total / blocks;
      multiply(in_, s_.gemm, pixel, static_cast<int>(block_end - pixel), s_.gemm.weights, chunk_, block_);
      const float* from = block_;
      while (pixel < block_end) {
        const int64_t row = pixel / s_.width, column = pixel % s_.width;
        const int64_t run = std::min(s_.width - column, block_end - pixel), kept = std::min(run, used - column);
        if (kept > 0) {
          activate_(from, kept, width_, bias, ring_row(row) + (s_.pad_left + column) * kGroup, plane_);
        }
        from += run * kPanel;
        pixel += run;
      }
    }
  }

  void copy_row(int64_t row) {
    const T* from = in_ + row * s_.width * s_.in.pixel_stride + first_group_ * kGroup;
    float* to = ring_row(row) + s_.pad_left * kGroup;
    const int64_t used = used_columns();
    for (int64_t group = 0; group < width_; ++group) {
      for (int64_t column = 0; column < used; ++column) {
        for (int64_t c = 0; c < kGroup; c += kLanes) {
          store(to + group * plane_ + column * kGroup + c,
                load(from + column * s_.in.pixel_stride + group * kGroup + c));
        }
      }
    }
  }

  // Output rows [first, last), a few columns at a time: what one row has read is still in the nearest cache for the
  // next.
  void compute(int64_t first, int64_t last) {
    const int64_t tiles = divide_up(s_.out_width, kTileColumns);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t column = tile * s_.out_width / tiles, end = (tile + 1) * s_.out_width / tiles;
      for (int64_t channel = 0; channel < width_ * kGroup; channel += kLanes) {
        for (int64_t row = first; row < last; ++row) compute_tile(row, column, end, channel, y_of(row, column, first));
      }
      if (!by_copy_) continue;
      for (int64_t row = first; row < last; ++row) {
        copy_past_caches(out_ + (row * s_.out_width + column) * width_ * kGroup, y_of(row, column, first),
                         (end - column) * width_ * kGroup * sizeof(T));
      }
    }
  }

  // Where a tile's outputs go: what is streamed to memory must first fill whole lines.
  T* y_of(int64_t row, int64_t column, int64_t first) const {
    if (by_copy_) return streamed_ + (row - first) * kTileColumns * kPanel;
    return out_ + (row * s_.out_width + column) * width_ * kGroup;
  }

  void compute_tile(int64_t row, int64_t column, int64_t end, int64_t channel, T* y) {
    const int64_t top = row * s_.stride - s_.pad_top, bottom = std::min(top + s_.kernel, s_.height);
    const int64_t group = channel / kGroup, lane = channel % kGroup, from = first_group_ * kGroup + channel;
    const float* weights = s_.taps + (first_group_ + group) * s_.kernel * s_.kernel * kGroup + lane;
    Rows taps;
    taps.count = 0;
    for (int64_t r = std::max<int64_t>(top, 0); r < bottom; ++r) {
      taps.rows[taps.count] = ring_row(r) + group * plane_ + column * s_.stride * kGroup + lane;
      taps.weights[taps.count++] = weights + (r - top) * s_.kernel * kGroup;
    }
    RowOut out{load(s_.taps_bias + from), Vec(0.0f), y + channel, width_ * kGroup};
    convolve_(taps, end - column, finish_, out);
    if (s_.sums == nullptr) return;
    float* sums = s_.sums + (image_ * s_.out_height + row) * s_.chunks.groups * kGroup + from;
    store(sums, column == 0 ? out.sum : load(sums) + out.sum);
  }

  const Step& s_;
  const T* in_;
  T *out_, *streamed_;
  float *ring_, *block_;
  int64_t chunk_, band_, image_, width_, first_group_, plane_;
  decltype(&convolve<3, 1>) convolve_ = select_convolve(s_.kernel, s_.stride);
  FinishColumns* finish_ = select_finish<T>(s_.depthwise_act, s_.stream);
  const bool by_copy_ = s_.stream && !kWholeLines<T>;
  decltype(&activate_columns<Activation::kNone, false>) activate_ =
      with_activation(s_.gemm.act, [](auto known) { return &activate_columns<known.value, kIsHalf<T>>; });
};

}  // namespace

void expand_depthwise_item(const Step& step, int64_t item, float* scratch) {
  with_storage(step.dtype, [&](auto stored) { Item<decltype(stored)>(step, item, scratch).run(); });
}

}  // namespace effnet::cpu::EFFNET_ISA
