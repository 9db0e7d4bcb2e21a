// Depthwise convolution over NHWC, one task at a time; compiled once per instruction set.
//
// Input rows pass once through the prologue into a ring of `kernel` fp32 rows that stays in cache, already padded left
// and right, so that the inner loop has no predicate. Rows outside the image are left out of the sum altogether. Where
// nothing happens to the input (fp32, no prologue, no padding) the inner loop reads it in place.
#include <algorithm>
#include <type_traits>

#include "cpu/isa/act.h"
#include "cpu/isa/storage.h"
#include "cpu/isa/streaming.h"
#include "cpu/passes/moments.h"
#include "cpu/stencil/row.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

constexpr int64_t kMinDirectColumns = 28;

// to[columns][kChunk] = act(scale * from + shift), channels at `from_stride` apart per column; lanes past `channels`
// are computed from zeros and never reach y.
template <class T, Activation kAct, bool kPlain>
void load_row(const T* from, int64_t from_stride, int64_t columns, int64_t channels, const float* scale,
              const float* shift, float* to) {
  for (int64_t column = 0; column < columns; ++column) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int count = static_cast<int>(std::min<int64_t>(kLanes, channels - c));
      Vec x = load_lanes(from + column * from_stride + c, count);
      if constexpr (!kPlain) x = quick_activate<kAct, false>(multiply_add(x, load(scale + c), load(shift + c)));
      store(to + column * kChunk + c, x);
    }
  }
}

// y[columns] = act(scale * row + shift) for `count` <= kLanes channels; returns the sum of y before rounding.
template <class T, Activation kAct>
Vec store_row(const float* row, int64_t columns, int64_t y_stride, int count, bool past_caches, Vec scale, Vec shift,
              T* y) {
  Vec sum(0.0f);
  if (past_caches) {
    for (int64_t column = 0; column < columns; ++column) {
      const Vec value = quick_activate<kAct, false>(multiply_add(load(row + column * kLanes), scale, shift));
      sum = sum + value;
      store_past_caches(y + column * y_stride, value);
    }
  } else if (count == kLanes) {
    for (int64_t column = 0; column < columns; ++column) {
      const Vec value = quick_activate<kAct, false>(multiply_add(load(row + column * kLanes), scale, shift));
      sum = sum + value;
      store(y + column * y_stride, value);
    }
  } else {
    for (int64_t column = 0; column < columns; ++column) {
      const Vec value = quick_activate<kAct, false>(multiply_add(load(row + column * kLanes), scale, shift));
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

// weights[kernel * kernel][kChunk] in fp32, zero past `channels`.
template <class W>
void pack_weights(const DepthwiseParams& p, int64_t first_channel, int64_t channels, float* weights) {
  const W* from = static_cast<const W*>(p.weight) + first_channel * p.weight_channel_stride;
  for (int row = 0; row < p.kernel; ++row) {
    for (int col = 0; col < p.kernel; ++col) {
      const W* tap = from + row * p.weight_row_stride + col * p.weight_col_stride;
      float* to = weights + (row * p.kernel + col) * kChunk;
      for (int64_t c = 0; c < channels; ++c) to[c] = as_float(tap[c * p.weight_channel_stride]);
      for (int64_t c = channels; c < kChunk; ++c) to[c] = 0.0f;
    }
  }
}

// Where a thread's scratch memory goes.
struct Scratch {
  float *ring, *weights, *in_scale, *in_shift, *scale, *shift, *sums, *mean, *m2, *row;

  Scratch(const DepthwiseParams& p, const DepthwisePlan& plan, float* memory) {
    const auto take = [&memory](int64_t floats) {
      float* taken = memory;
      memory += floats;
      return taken;
    };
    ring = take(p.kernel * plan.ring_columns * kChunk);
    weights = take(int64_t{p.kernel} * p.kernel * kChunk);
    in_scale = take(kChunk);
    in_shift = take(kChunk);
    scale = take(kChunk);
    shift = take(kChunk);
    sums = take(kChunk);
    mean = take(kChunk);
    m2 = take(kChunk);
    row = take(p.out_width * kLanes);
  }
};

// Output columns [first, last) whose input is read from x itself or from the ring.
struct Segment {
  int64_t first, last;
  bool direct;
};

template <class T>
class Task {
 public:
  Task(const DepthwiseParams& p, const DepthwisePlan& plan, int64_t task, const Scratch& scratch)
      : p_(p), plan_(plan), scratch_(scratch) {
    first_channel_ = task % plan.chunks * kChunk;
    channels_ = std::min(kChunk, p.channels - first_channel_);
    band_ = task / plan.chunks % plan.bands;
    image_ = task / plan.chunks / plan.bands;
    x_ = static_cast<const T*>(p.x) + image_ * p.x_batch_stride + first_channel_;
    y_ = static_cast<T*>(p.y) + image_ * p.out_height * p.out_width * p.channels + first_channel_;
    left_ = std::min(p.pad_left, plan.ring_columns);
    used_columns_ = std::min(p.width, plan.ring_columns - left_);
    plan_segments();
  }

  void run() {
    prepare_scratch();
    const int64_t first_row = band_ * plan_.band_rows;
    const int64_t last_row = std::min(first_row + plan_.band_rows, p_.out_height);
    int64_t next_input_row = std::max<int64_t>(0, first_row * p_.stride - p_.pad_top);
    for (int64_t row = first_row; row < last_row; ++row) {
      const int64_t bottom = std::min(row * p_.stride - p_.pad_top + p_.kernel, p_.height);
      for (; next_input_row < bottom; ++next_input_row) fill_ring(next_input_row);
      for (int64_t c = 0; c < channels_; c += kLanes) {
        compute_row(row, bottom, c);
        if (plan_.partial_stats != nullptr) add_moments(row, (row - first_row) * p_.out_width, c);
      }
    }
    if (past_caches_) finish_stores();
    const int64_t unit = image_ * plan_.bands + band_;
    if (p_.pooled != nullptr) {
      std::copy_n(scratch_.sums, channels_, plan_.partial_sums + unit * p_.channels + first_channel_);
    }
    if (plan_.partial_stats != nullptr) {
      float* stats = plan_.partial_stats + unit * 3 * p_.channels + first_channel_;
      std::fill_n(stats, channels_, static_cast<float>((last_row - first_row) * p_.out_width));
      std::copy_n(scratch_.mean, channels_, stats + p_.channels);
      std::copy_n(scratch_.m2, channels_, stats + 2 * p_.channels);
    }
  }

 private:
  // Without a prologue fp32 needs no ring where no tap is in the padding: 1.3 ns less for a vector of outputs. A
  // partial vector would read past the last channel of the tensor.
  void plan_segments() {
    const bool plain = p_.in_act == Activation::kNone && p_.in_scale == nullptr && p_.in_shift == nullptr;
    const int64_t room = p_.width + p_.pad_left - p_.kernel;
    if (std::is_same_v<T, float> && plain && channels_ % kLanes == 0 && p_.out_width >= kMinDirectColumns &&
        room >= 0) {
      const int64_t first = std::min((p_.pad_left + p_.stride - 1) / p_.stride, p_.out_width);
      const int64_t last = std::min(room / p_.stride + 1, p_.out_width);
      if (first < last) {
        add_segment({0, first, false});
        add_segment({first, last, true});
        add_segment({last, p_.out_width, false});
        return;
      }
    }
    add_segment({0, p_.out_width, false});
  }

  void add_segment(Segment segment) {
    if (segment.first < segment.last) segments_[segment_count_++] = segment;
  }

  float* ring_row(int64_t row) const { return scratch_.ring + row % p_.kernel * plan_.ring_columns * kChunk; }

  void prepare_scratch() {
    with_storage(p_.weight_dtype,
                 [&](auto stored) { pack_weights<decltype(stored)>(p_, first_channel_, channels_, scratch_.weights); });
    copy_or_fill(p_.in_scale, 1.0f, scratch_.in_scale);
    copy_or_fill(p_.in_shift, 0.0f, scratch_.in_shift);
    copy_or_fill(p_.scale, 1.0f, scratch_.scale);
    copy_or_fill(p_.shift, 0.0f, scratch_.shift);
    for (float* zeroed : {scratch_.sums, scratch_.mean, scratch_.m2}) std::fill_n(zeroed, kChunk, 0.0f);
    // Input columns [0, used_columns) appear in the ring after `left` columns; the others there are zero and stay so.
    const int64_t right = plan_.ring_columns - left_ - used_columns_;
    for (int row = 0; row < p_.kernel; ++row) {
      std::memset(ring_row(row), 0, sizeof(float) * left_ * kChunk);
      std::memset(ring_row(row) + (left_ + used_columns_) * kChunk, 0, sizeof(float) * right * kChunk);
    }
  }

  void copy_or_fill(const float* vector, float otherwise, float* to) const {
    for (int64_t c = 0; c < kChunk; ++c) {
      to[c] = c < channels_ && vector != nullptr ? vector[first_channel_ + c] : otherwise;
    }
  }

  void fill_ring(int64_t row) {
    for (int i = 0; i < segment_count_; ++i) {
      if (segments_[i].direct) continue;
      const int64_t first = std::max(segments_[i].first * p_.stride, left_);
      const int64_t last = std::min((segments_[i].last - 1) * p_.stride + p_.kernel, left_ + used_columns_);
      if (first >= last) continue;
      load_input_(x_ + row * p_.x_row_stride + (first - left_) * p_.x_col_stride, p_.x_col_stride, last - first,
                  channels_, scratch_.in_scale, scratch_.in_shift, ring_row(row) + first * kChunk);
    }
  }

  // Where segment's first column reads its first tap of input row `row`.
  const float* tap_row(const Segment& segment, int64_t row) const {
    const int64_t column = segment.first * p_.stride;
    if constexpr (std::is_same_v<T, float>) {
      if (segment.direct) return x_ + row * p_.x_row_stride + (column - p_.pad_left) * p_.x_col_stride;
    }
    return ring_row(row) + column * kChunk;
  }

  void compute_row(int64_t out_row, int64_t bottom, int64_t c) {
    const int64_t top = out_row * p_.stride - p_.pad_top;
    for (int i = 0; i < segment_count_; ++i) {
      Taps taps{};
      taps.column_stride = segments_[i].direct ? p_.x_col_stride : kChunk;
      const int64_t next_row = std::max<int64_t>(std::min(bottom + p_.stride - 1, p_.height - 1), 0);
      const int64_t column = std::max<int64_t>(segments_[i].first * p_.stride - p_.pad_left, 0);
      taps.next_row = reinterpret_cast<const char*>(x_ + next_row * p_.x_row_stride + column * p_.x_col_stride + c);
      taps.next_stride = p_.x_col_stride * static_cast<int64_t>(sizeof(T));
      for (int64_t row = std::max<int64_t>(top, 0); row < bottom; ++row) {
        taps.rows[taps.count] = tap_row(segments_[i], row) + c;
        taps.weights[taps.count++] = scratch_.weights + (row - top) * p_.kernel * kChunk + c;
      }
      convolve_(taps, segments_[i].last - segments_[i].first, scratch_.row + segments_[i].first * kLanes);
    }
    const int count = static_cast<int>(std::min<int64_t>(kLanes, channels_ - c));
    const Vec sum =
        store_output_(scratch_.row, p_.out_width, p_.channels, count, past_caches_, load(scratch_.scale + c),
                      load(scratch_.shift + c), y_ + out_row * p_.out_width * p_.channels + c);
    store(scratch_.sums + c, load(scratch_.sums + c) + sum);
  }

  // Of the row as stored: in fp32 without an epilogue that is the row in scratch memory.
  void add_moments(int64_t out_row, int64_t before, int64_t c) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, channels_ - c));
    const Moments row =
        raw_ ? moments_of(scratch_.row, kLanes, p_.out_width, kLanes)
             : moments_of(y_ + out_row * p_.out_width * p_.channels + c, p_.channels, p_.out_width, count);
    merge_moments(row, static_cast<float>(before), scratch_.mean + c, scratch_.m2 + c, kLanes);
  }

  const DepthwiseParams& p_;
  const DepthwisePlan& plan_;
  const Scratch& scratch_;
  const ConvolveRow convolve_ = select_convolve_row(p_.kernel, p_.stride);
  const LoadRow<T> load_input_ = select_load_row<T>(p_.in_act, p_.in_scale != nullptr || p_.in_shift != nullptr);
  const StoreRow<T> store_output_ = select_store_row<T>(p_.act);
  const bool raw_ =
      std::is_same_v<T, float> && p_.act == Activation::kNone && p_.scale == nullptr && p_.shift == nullptr;
  const bool past_caches_ =
      raw_ && writes_past_caches(p_.y, p_.batch* p_.out_height* p_.out_width* p_.channels, p_.channels);
  const T* x_;
  T* y_;
  int64_t first_channel_, channels_, band_, image_;
  int64_t left_, used_columns_;
  Segment segments_[3];
  int segment_count_ = 0;
};

}  // namespace

void depthwise_tasks(const DepthwiseParams& p, const DepthwisePlan& plan, int64_t begin, int64_t end, float* memory) {
  const Scratch scratch(p, plan, memory);
  for (int64_t task = begin; task < end; ++task) {
    with_storage(p.dtype, [&](auto stored) { Task<decltype(stored)>(p, plan, task, scratch).run(); });
  }
}

}  // namespace effnet::cpu::EFFNET_ISA
