// Backward of the depthwise convolution over NHWC, one task at a time; compiled once per instruction set.
//
// It walks over the rows of the input. dz is formed once per row from dy and z, in a padded fp32 ring that stays in
// cache. One row of x gives the activation, for the weight's gradient, and its derivative, for dx: both need the same
// rows of dz, so a row of x is read once and no row of dx waits for another.
#include <algorithm>
#include <type_traits>

#include "cpu/isa/storage.h"
#include "cpu/isa/streaming.h"
#include "cpu/isa/vec_grad.h"
#include "cpu/stencil/backward.h"
#include "cpu/stencil/row.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

// sums[i] += sum over kColumns columns j of a[j] * dz[j + i]. With few taps the columns alternate between two chains,
// which hides the latency of the additions.
template <int kTaps, int kSets, int kColumns>
inline __attribute__((always_inline)) void correlate_block(const float* dz, const float* a, Vec (&sums)[kSets][kTaps]) {
  Vec values[kColumns];
#pragma GCC unroll 8
  for (int j = 0; j < kColumns; ++j) values[j] = load(a + j * kLanes);
#pragma GCC unroll 16
  for (int m = 0; m < kColumns + kTaps - 1; ++m) {
    Vec x = load(dz + m * kChunk);
    keep_in_register(x);
#pragma GCC unroll 8
    for (int i = 0; i < kTaps; ++i) {
      const int j = m - i;
      if (j >= 0 && j < kColumns) sums[j % kSets][i] = multiply_add(x, values[j], sums[j % kSets][i]);
    }
  }
}

// dw[i] += sum over columns of a[column] * dz[column + i]; dz and dw are kChunk floats apart, a is kLanes.
template <int kTaps>
void correlate_row(const float* dz, const float* a, int64_t columns, float* dw) {
  constexpr int kSets = kTaps <= 3 ? 2 : 1;
  Vec sums[kSets][kTaps];
  for (auto& set : sums) {
    for (Vec& sum : set) sum = Vec(0.0f);
  }
  int64_t column = 0;
  for (; column + 8 <= columns; column += 8) {
    correlate_block<kTaps, kSets, 8>(dz + column * kChunk, a + column * kLanes, sums);
  }
  if (columns & 4) {
    correlate_block<kTaps, kSets, 4>(dz + column * kChunk, a + column * kLanes, sums);
    column += 4;
  }
  if (columns & 2) {
    correlate_block<kTaps, kSets, 2>(dz + column * kChunk, a + column * kLanes, sums);
    column += 2;
  }
  if (columns & 1) correlate_block<kTaps, kSets, 1>(dz + column * kChunk, a + column * kLanes, sums);
  for (int i = 0; i < kTaps; ++i) {
    Vec sum = sums[0][i];
    if constexpr (kSets == 2) sum = sum + sums[1][i];
    store(dw + i * kChunk, load(dw + i * kChunk) + sum);
  }
}

using CorrelateRow = decltype(&correlate_row<1>);

CorrelateRow select_correlate_row(int taps) {
  constexpr CorrelateRow rows[] = {correlate_row<1>, correlate_row<2>, correlate_row<3>, correlate_row<4>,
                                   correlate_row<5>, nullptr,          correlate_row<7>};
  return rows[taps - 1];
}

ConvolveRow select_convolve_taps(int taps) {
  constexpr ConvolveRow rows[] = {convolve_row<1, 1>, convolve_row<2, 1>, convolve_row<3, 1>,
                                  convolve_row<4, 1>, convolve_row<5, 1>, nullptr,
                                  convolve_row<7, 1>};
  return rows[taps - 1];
}

// The vectors of one chunk of channels, zero past the last channel.
struct ChunkVectors {
  float *gate, *pool_grad, *scale, *shift, *grad_a, *grad_b, *grad_c, *grad_mean;
  float *in_scale, *in_shift, *in_mean, *in_invstd;
};

// One row of dz, kChunk floats per column; `dy` and `z` begin at its first column.
template <class T, Activation kAct>
void form_dz(const T* dy, const T* z, bool has_grad, int64_t row_stride, int64_t pixel_stride, int64_t columns,
             int64_t channels, const ChunkVectors& v, float* to) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, channels - c));
    const Vec gate = load(v.gate + c), pool_grad = load(v.pool_grad + c);
    const Vec scale = load(v.scale + c), shift = load(v.shift + c);
    const Vec a = load(v.grad_a + c), b = load(v.grad_b + c), rest = load(v.grad_c + c), mean = load(v.grad_mean + c);
    for (int64_t column = 0; column < columns; ++column) {
      const T* dy_at = dy + column * pixel_stride + c;
      __builtin_prefetch(dy_at + row_stride, 0, 2);
      Vec g = multiply_add(load_lanes(dy_at, count), gate, pool_grad);
      if (z != nullptr) {
        const T* z_at = z + column * pixel_stride + c;
        __builtin_prefetch(z_at + row_stride, 0, 2);
        const Vec value = load_lanes(z_at, count);
        if constexpr (kAct != Activation::kNone) g = g * quick_activate_grad<kAct>(multiply_add(value, scale, shift));
        if (has_grad) g = multiply_add(g, a, multiply_add(value - mean, b, rest));
      }
      store(to + column * kChunk + c, g);
    }
  }
}

// Columns `first`, first + stride, ... of one row of x: the activation and its derivative.
template <class T, Activation kAct>
void activate_row(const T* x, int64_t ahead, int64_t stride, int64_t columns, int count, Vec scale, Vec shift,
                  float* value, float* derivative) {
  for (int64_t column = 0; column < columns; ++column) {
    const T* at = x + column * stride;
    __builtin_prefetch(at + ahead, 0, 2);
    const ValueAndGrad act = activate_with_grad<kAct>(multiply_add(load_lanes(at, count), scale, shift));
    store(value + column * kLanes, act.value);
    store(derivative + column * kLanes, act.grad);
  }
}

template <class T>
using FormDz = decltype(&form_dz<T, Activation::kNone>);
template <class T>
using ActivateRow = decltype(&activate_row<T, Activation::kNone>);

template <class T>
class Task {
 public:
  Task(const DepthwiseBackwardParams& p, const DepthwiseBackwardPlan& plan, int64_t task, float* memory)
      : p_(p), plan_(plan) {
    first_channel_ = task % plan.chunks * kChunk;
    channels_ = std::min(kChunk, p.channels - first_channel_);
    group_ = task / plan.chunks;
    const auto take = [&memory](int64_t floats) {
      float* taken = memory;
      memory += floats;
      return taken;
    };
    ring_ = take(p.kernel * plan.ring_columns * kChunk);
    weights_ = take(int64_t{p.kernel} * p.kernel * kChunk);
    dw_ = take(int64_t{p.kernel} * p.kernel * kChunk);
    for (float** vector : {&v_.gate, &v_.pool_grad, &v_.scale, &v_.shift, &v_.grad_a, &v_.grad_b, &v_.grad_c,
                           &v_.grad_mean, &v_.in_scale, &v_.in_shift, &v_.in_mean, &v_.in_invstd}) {
      *vector = take(kChunk);
    }
    sums_ = take(2 * kChunk);
    const int64_t row = (p.width + p.stride - 1) / p.stride * p.stride * kLanes;
    value_ = take(row);
    derivative_ = take(row);
    da_ = take(row);
  }

  void run() {
    prepare();
    const int64_t units = p_.batch * plan_.bands;
    const int64_t end = (group_ + 1) * units / plan_.groups;
    for (int64_t unit = group_ * units / plan_.groups; unit < end; ++unit)
      run_unit(unit / plan_.bands, unit % plan_.bands);
    if (past_caches_) finish_stores();
    if (plan_.partial_dw != nullptr) {
      float* out = plan_.partial_dw + group_ * p_.kernel * p_.kernel * p_.channels + first_channel_;
      for (int slot = 0; slot < p_.kernel * p_.kernel; ++slot) {
        std::copy_n(dw_ + slot * kChunk, channels_, out + slot * p_.channels);
      }
    }
    if (plan_.partial_sums != nullptr) {
      float* out = plan_.partial_sums + group_ * 2 * p_.channels + first_channel_;
      std::copy_n(sums_, channels_, out);
      std::copy_n(sums_ + kChunk, channels_, out + p_.channels);
    }
  }

 private:
  void copy_or_fill(const float* from, float otherwise, float* to) const {
    if (from == nullptr) {
      std::fill_n(to, kChunk, otherwise);
    } else {
      std::fill(std::copy_n(from + first_channel_, channels_, to), to + kChunk, 0.0f);
    }
  }

  void prepare() {
    with_storage(p_.weight_dtype, [&](auto stored) { pack_weights<decltype(stored)>(); });
    copy_or_fill(p_.incoming.scale, 1.0f, v_.scale);
    copy_or_fill(p_.incoming.shift, 0.0f, v_.shift);
    copy_or_fill(p_.incoming.grad.a, 1.0f, v_.grad_a);
    copy_or_fill(p_.incoming.grad.b, 0.0f, v_.grad_b);
    copy_or_fill(p_.incoming.grad.c, 0.0f, v_.grad_c);
    copy_or_fill(p_.incoming.grad.mean, 0.0f, v_.grad_mean);
    copy_or_fill(p_.source.scale, 1.0f, v_.in_scale);
    copy_or_fill(p_.source.shift, 0.0f, v_.in_shift);
    copy_or_fill(p_.source.norm_mean, 0.0f, v_.in_mean);
    copy_or_fill(p_.source.invstd, 1.0f, v_.in_invstd);
    std::fill_n(dw_, int64_t{p_.kernel} * p_.kernel * kChunk, 0.0f);
    std::fill_n(sums_, 2 * kChunk, 0.0f);
    // Columns of the ring outside dz, and lanes past the last channel, are zero and stay so.
    std::fill_n(ring_, p_.kernel * plan_.ring_columns * kChunk, 0.0f);
  }

  // Row by row of the kernel; in a row the even taps, then (stride 2) the odd ones, each from the last to the first.
  template <class W>
  void pack_weights() {
    const W* from = static_cast<const W*>(p_.weight) + first_channel_ * p_.weight_channel_stride;
    for (int row = 0; row < p_.kernel; ++row) {
      for (int col = 0; col < p_.kernel; ++col) {
        const W* tap = from + row * p_.weight_row_stride + col * p_.weight_col_stride;
        float* to = weights_ + (row * p_.kernel + slot_of(col)) * kChunk;
        for (int64_t c = 0; c < kChunk; ++c) to[c] = c < channels_ ? as_float(tap[c * p_.weight_channel_stride]) : 0.0f;
      }
    }
  }

  int slot_of(int col) const {
    const int phase = col % p_.stride;
    const int taps = (p_.kernel - phase + p_.stride - 1) / p_.stride;
    return (phase == 0 ? 0 : (p_.kernel + 1) / 2) + taps - 1 - col / p_.stride;
  }

  void run_unit(int64_t image, int64_t band) {
    copy_or_fill(p_.incoming.gate == nullptr ? nullptr : p_.incoming.gate + image * p_.channels, 1.0f, v_.gate);
    copy_or_fill(p_.incoming.pool_grad == nullptr ? nullptr : p_.incoming.pool_grad + image * p_.channels, 0.0f,
                 v_.pool_grad);
    const int64_t first = band * plan_.band_rows;
    const int64_t last = std::min(first + plan_.band_rows, p_.height);
    int64_t next_dz_row = (std::max<int64_t>(first + p_.pad_top - p_.kernel + 1, 0) + p_.stride - 1) / p_.stride;
    for (int64_t row = first; row < last; ++row) {
      const int64_t dz_end = std::min((row + p_.pad_top) / p_.stride + 1, p_.out_height);
      for (; next_dz_row < dz_end; ++next_dz_row) fill_ring(image, next_dz_row);
      for (int64_t c = 0; c < channels_; c += kLanes) compute_row(image, row, c);
    }
  }

  float* ring_row(int64_t row) const { return ring_ + row % p_.kernel * plan_.ring_columns * kChunk; }

  void fill_ring(int64_t image, int64_t row) {
    const int64_t first = std::max<int64_t>(plan_.first_dz_column, 0);
    const int64_t last = std::min(plan_.first_dz_column + plan_.ring_columns, p_.out_width);
    if (first >= last) return;
    const int64_t at = ((image * p_.out_height + row) * p_.out_width + first) * p_.channels + first_channel_;
    form_dz_(static_cast<const T*>(p_.incoming.dy) + at,
             p_.incoming.z == nullptr ? nullptr : static_cast<const T*>(p_.incoming.z) + at,
             p_.incoming.grad.a != nullptr, p_.out_width * p_.channels, p_.channels, last - first, channels_, v_,
             ring_row(row) + (first - plan_.first_dz_column) * kChunk);
  }

  void compute_row(int64_t image, int64_t row, int64_t c) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, channels_ - c));
    const int64_t at = (image * p_.height + row) * p_.width * p_.channels + first_channel_ + c;
    for (int first = 0; first < p_.stride; ++first) {
      const ColumnPhase& phase = plan_.phases[first];
      if (phase.columns == 0) continue;
      activate_(static_cast<const T*>(p_.source.x) + at + first * p_.channels, p_.width * p_.channels,
                p_.stride * p_.channels, phase.columns, count, load(v_.in_scale + c), load(v_.in_shift + c), value_,
                derivative_);
      Taps taps{};
      taps.column_stride = kChunk;
      // The rows that come next are fetched where they are read.
      taps.next_row = reinterpret_cast<const char*>(value_);
      for (int64_t tap = (row + p_.pad_top) % p_.stride; tap < p_.kernel; tap += p_.stride) {
        if (row + p_.pad_top < tap) break;
        const int64_t dz_row = (row + p_.pad_top - tap) / p_.stride;
        if (dz_row >= p_.out_height) continue;
        const float* dz = ring_row(dz_row) + phase.dz_column * kChunk + c;
        const int64_t slot = (tap * p_.kernel + phase.first_slot) * kChunk + c;
        if (plan_.partial_dw != nullptr) correlate_[first](dz, value_, phase.columns, dw_ + slot);
        taps.rows[taps.count] = dz;
        taps.weights[taps.count++] = weights_ + slot;
      }
      if (p_.dx == nullptr) continue;
      convolve_[first](taps, phase.columns, da_);
      finish_row(at + first * p_.channels, phase.columns, count, c);
    }
  }

  void finish_row(int64_t at, int64_t columns, int count, int64_t c) {
    const int64_t stride = p_.stride * p_.channels;
    T* dx = static_cast<T*>(p_.dx) + at;
    if (p_.source.scale == nullptr) {
      const T* residual = p_.residual_grad == nullptr ? nullptr : static_cast<const T*>(p_.residual_grad) + at;
      for (int64_t column = 0; column < columns; ++column) {
        Vec da = load(da_ + column * kLanes);
        if (residual != nullptr) da = da + load_lanes(residual + column * stride, count);
        store_lanes(dx + column * stride, da, count);
      }
      return;
    }
    const T* x = static_cast<const T*>(p_.source.x) + at;
    const Vec mean = load(v_.in_mean + c), invstd = load(v_.in_invstd + c);
    // A few columns at a time: the error of a running sum grows with its length.
    constexpr int64_t kBlock = 16;
    Vec row_sums[2] = {Vec(0.0f), Vec(0.0f)};
    for (int64_t column = 0; column < columns;) {
      Vec sum(0.0f), sum_x_hat(0.0f);
      for (const int64_t stop = std::min(column + kBlock, columns); column < stop; ++column) {
        const Vec g = load(da_ + column * kLanes) * load(derivative_ + column * kLanes);
        sum = sum + g;
        sum_x_hat = multiply_add(g, (load_lanes(x + column * stride, count) - mean) * invstd, sum_x_hat);
        if (past_caches_) {
          store_past_caches(dx + column * stride, g);
        } else {
          store_lanes(dx + column * stride, g, count);
        }
      }
      row_sums[0] = row_sums[0] + sum;
      row_sums[1] = row_sums[1] + sum_x_hat;
    }
    store(sums_ + c, load(sums_ + c) + row_sums[0]);
    store(sums_ + kChunk + c, load(sums_ + kChunk + c) + row_sums[1]);
  }

  const DepthwiseBackwardParams& p_;
  const DepthwiseBackwardPlan& plan_;
  const FormDz<T> form_dz_ =
      with_activation(p_.incoming.act, [](auto act) -> FormDz<T> { return form_dz<T, act.value>; });
  const ActivateRow<T> activate_ =
      with_activation(p_.source.act, [](auto act) -> ActivateRow<T> { return activate_row<T, act.value>; });
  const ConvolveRow convolve_[2] = {select_convolve_taps(plan_.phases[0].taps),
                                    select_convolve_taps(plan_.phases[p_.stride - 1].taps)};
  const CorrelateRow correlate_[2] = {select_correlate_row(plan_.phases[0].taps),
                                      select_correlate_row(plan_.phases[p_.stride - 1].taps)};
  const bool past_caches_ = std::is_same_v<T, float> && p_.source.scale != nullptr &&
                            writes_past_caches(p_.dx, p_.batch* p_.height* p_.width* p_.channels, p_.channels);
  ChunkVectors v_;
  float *ring_, *weights_, *dw_, *sums_, *value_, *derivative_, *da_;
  int64_t first_channel_, channels_, group_;
};

}  // namespace

void depthwise_backward_tasks(const DepthwiseBackwardParams& p, const DepthwiseBackwardPlan& plan, int64_t begin,
                              int64_t end, float* memory) {
  for (int64_t task = begin; task < end; ++task) {
    with_storage(p.dtype, [&](auto stored) { Task<decltype(stored)>(p, plan, task, memory).run(); });
  }
}

}  // namespace effnet::cpu::EFFNET_ISA
