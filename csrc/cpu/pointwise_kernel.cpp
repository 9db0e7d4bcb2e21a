// The 1x1 convolution of training, one band of an image at a time; compiled once per instruction set.
#include <algorithm>

#include "channel_sums.h"
#include "moments.h"
#include "network_kernels.h"
#include "pointwise.h"
#include "vec_grad.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

// Pixels [0, rows) of one block; every pointer is at its first pixel.
template <Activation kAct>
void form_activation(const PointwiseParams& p, const float* x, const float* gate, int64_t rows, float* to) {
  for (int64_t c = 0; c < p.in; c += kLanes) {
    const int count = lanes_left(p.in, c);
    const Vec scale = vector_or(p.scale, c, count, 1.0f), shift = vector_or(p.shift, c, count, 0.0f);
    const Vec factor = vector_or(gate, c, count, 1.0f);
    for (int64_t row = 0; row < rows; ++row) {
      const Vec n = multiply_add(load_lanes(x + row * p.in + c, count), scale, shift);
      fetch_ahead(x + row * p.in + c);
      store_lanes(to + row * p.in + c, activate<kAct>(n) * factor, count);
    }
  }
}

void form_input_grad(const PointwiseParams& p, const float* dy, const float* z, Vec row_scale, int64_t rows,
                     float* to) {
  for (int64_t c = 0; c < p.in; c += kLanes) {
    const int count = lanes_left(p.in, c);
    const Vec a = vector_or(p.a, c, count, 1.0f) * row_scale, b = vector_or(p.b, c, count, 0.0f);
    const Vec rest = vector_or(p.c, c, count, 0.0f), mean = vector_or(p.mean, c, count, 0.0f);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = row * p.in + c;
      Vec g = load_lanes(dy + at, count) * a;
      fetch_ahead(dy + at);
      if (z != nullptr) {
        g = g + multiply_add(load_lanes(z + at, count) - mean, b, rest);
        fetch_ahead(z + at);
      }
      store_lanes(to + at, g, count);
    }
  }
}

// One vector of channels of a block's result, whose rows lie kPanel floats apart at `tile`.
struct Column {
  const float* tile;
  int64_t rows, c, offset;  // offset: of the block's first pixel in tensors like y
  int count;
};

void store_column(const PointwiseParams& p, const Column& v) {
  float* y = p.y + v.offset + v.c;
  for (int64_t row = 0; row < v.rows; ++row) {
    store_lanes(y + row * p.out, load(v.tile + row * kPanel), v.count);
  }
}

template <Activation kAct>
void sum_column(const PointwiseParams& p, const Column& v, const float* gate_vector, float* sums) {
  const Vec scale = load_lanes(p.in_scale + v.c, v.count), shift = load_lanes(p.in_shift + v.c, v.count);
  const Vec mean = load_lanes(p.in_mean + v.c, v.count), invstd = load_lanes(p.in_invstd + v.c, v.count);
  const Vec gate = vector_or(gate_vector, v.c, v.count, 1.0f);
  const float* input = p.input + v.offset + v.c;
  float* activation = p.activation == nullptr ? nullptr : p.activation + v.offset + v.c;
  Vec total[5];
  sum_rows(0, v.rows, total, [&](Vec(&sum)[5], int64_t row) {
    fetch_ahead(input + row * p.out);
    const ValueAndGrad act = add_gate_and_norm<kAct>(
        load(v.tile + row * kPanel), load_lanes(input + row * p.out, v.count), scale, shift, mean, invstd, sum);
    if (activation != nullptr) store_lanes(activation + row * p.out, act.value * gate, v.count);
  });
  add_sums(total, sums, p.out, v.c, v.count);
}

class Task {
 public:
  Task(const PointwiseParams& p, int64_t task, float* scratch)
      : p_(p), formed_(scratch), tile_(scratch + kPointwiseRows * round_up(p.in, kGroup)) {
    image_ = task / p.bands;
    first_ = task % p.bands * p.rows / p.bands;
    last_ = (task % p.bands + 1) * p.rows / p.bands;
    segment_ = {0, static_cast<int32_t>(p.in), static_cast<int32_t>(p.in)};
    gemm_.depth = p.in;
    gemm_.panels = p.panels;
    gemm_.channels = p.out;
    gemm_.segments = &segment_;
    gemm_.segment_count = 1;
    moments_ = p.moments == nullptr ? nullptr : p.moments + task * 3 * p.out;
    sums_ = p.sums == nullptr ? nullptr : p.sums + task * 5 * p.out;
  }

  void run() {
    if (moments_ != nullptr) {
      std::fill_n(moments_, p_.out, static_cast<float>(last_ - first_));
      std::fill_n(moments_ + p_.out, 2 * p_.out, 0.0f);
    }
    if (sums_ != nullptr) std::fill_n(sums_, 5 * p_.out, 0.0f);
    const int64_t blocks = divide_up(last_ - first_, kPointwiseRows);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = first_ + block * (last_ - first_) / blocks;
      run_block(first, first_ + (block + 1) * (last_ - first_) / blocks - first);
    }
  }

 private:
  const float* form(int64_t pixel, int64_t rows) {
    const float* x = p_.x + pixel * p_.in;
    float* to = p_.formed == nullptr ? formed_ : p_.formed + pixel * p_.in;
    switch (p_.form) {
      case Forming::kNone:
        return x;
      case Forming::kActivation:
        with_activation(p_.act, [&](auto act) {
          form_activation<act.value>(p_, x, p_.gate == nullptr ? nullptr : p_.gate + image_ * p_.in, rows, to);
        });
        return to;
      case Forming::kInputGrad:
        form_input_grad(p_, x, p_.z == nullptr ? nullptr : p_.z + pixel * p_.in,
                        Vec(p_.row_scale == nullptr ? 1.0f : p_.row_scale[image_]), rows, to);
        return to;
    }
    return x;
  }

  // What the epilogue reads comes while the product is computed.
  void fetch_input(int64_t pixel, int64_t rows, int64_t panel) const {
    const float* input = p_.input + pixel * p_.out + p_.panels.first(panel) * kGroup;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t c = 0; c < p_.panels.width(panel) * kGroup; c += kGroup) {
        __builtin_prefetch(input + row * p_.out + c, 0, 2);
      }
    }
  }

  void run_block(int64_t first, int64_t rows) {
    const int64_t pixel = image_ * p_.rows + first;
    const float* a = form(pixel, rows);
    const float* gate = p_.in_gate == nullptr ? nullptr : p_.in_gate + image_ * p_.out;
    for (int64_t panel = 0; panel < p_.panels.count; ++panel) {
      if (sums_ != nullptr) fetch_input(pixel, rows, panel);
      multiply(a, gemm_, 0, static_cast<int>(rows), p_.weights, panel, tile_);
      const int64_t begin = p_.panels.first(panel) * kGroup;
      const int64_t end = std::min(begin + p_.panels.width(panel) * kGroup, p_.out);
      for (int64_t c = begin; c < end; c += kLanes) {
        const Column column{tile_ + c - begin, rows, c, pixel * p_.out, lanes_left(end, c)};
        store_column(p_, column);
        if (moments_ != nullptr) {
          const Moments block = moments_of(column.tile, kPanel, rows, kLanes);
          merge_moments(block, static_cast<float>(first - first_), moments_ + p_.out + c, moments_ + 2 * p_.out + c,
                        column.count);
        }
        if (sums_ != nullptr) {
          with_activation(p_.in_act, [&](auto act) { sum_column<act.value>(p_, column, gate, sums_); });
        }
      }
    }
  }

  const PointwiseParams& p_;
  float *formed_, *tile_, *moments_, *sums_;
  Gemm gemm_{};
  Segment segment_;
  int64_t image_, first_, last_;
};

}  // namespace

void pointwise_tasks(const PointwiseParams& p, int64_t begin, int64_t end, float* scratch) {
  for (int64_t task = begin; task < end; ++task) Task(p, task, scratch).run();
}

}  // namespace effnet::cpu::EFFNET_ISA
