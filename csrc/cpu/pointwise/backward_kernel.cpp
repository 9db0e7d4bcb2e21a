// The backward of the training's 1x1 convolution, one part of the pixels at a time; compiled once per instruction set.
#include <algorithm>

#include "cpu/isa/streaming.h"
#include "cpu/pointwise/backward.h"
#include "cpu/pointwise/block.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

// The vectors of dz's formula, padded with zeros to whole groups.
struct Formula {
  float *a, *b, *rest, *mean;
};

// Row by row, which is how memory is read ahead; the formula's vectors stay in the nearest cache. The padding of a row
// of `to` is written too.
void form_dz(const PointwiseBackwardParams& p, const Formula& f, int64_t pixel, Vec row_scale, int64_t rows,
             int64_t stride, float* to) {
  const float* dy = p.dy() + pixel * p.out;
  const float* z = p.z() == nullptr ? nullptr : p.z() + pixel * p.out;
  for (int64_t row = 0; row < rows; ++row, to += stride, dy += p.out) {
    for (int64_t c = 0; c < p.out; c += kLanes) {
      const int count = lanes_left(p.out, c);
      Vec g = load_lanes(dy + c, count) * row_scale * load(f.a + c);
      if (z != nullptr) {
        g = g +
            multiply_add(load_lanes(z + row * p.out + c, count) - load(f.mean + c), load(f.b + c), load(f.rest + c));
      }
      store(to + c, g);
    }
  }
}

// One vector of channels of a block's result, whose rows lie kPanel floats apart at `tile`.
struct Column {
  const float* tile;
  int64_t rows, c, offset;  // offset: of the block's first pixel in x
  int count;
  bool past_caches;

  void store_row(float* to, Vec value) const {
    if (past_caches) {
      store_past_caches(to, value);
    } else {
      store_lanes(to, value, count);
    }
  }
};

void store_column(const PointwiseBackwardParams& p, const Column& v) {
  float* dx = p.dx + v.offset + v.c;
  const float* residual = p.residual == nullptr ? nullptr : p.residual + v.offset + v.c;
  for (int64_t row = 0; row < v.rows; ++row) {
    Vec value = load(v.tile + row * kPanel);
    if (residual != nullptr) value = value + load_lanes(residual + row * p.in, v.count);
    v.store_row(dx + row * p.in, value);
  }
}

// Stores G, adds the five sums and, where `activation` is not null, writes the gated activation there.
template <Activation kAct>
void finish_column(const PointwiseBackwardParams& p, const Column& v, const float* gate_vector, float* sums,
                   float* activation, int64_t stride) {
  const Vec scale = load_lanes(p.source.scale + v.c, v.count), shift = load_lanes(p.source.shift + v.c, v.count);
  const Vec mean = load_lanes(p.source.norm_mean + v.c, v.count), invstd = load_lanes(p.source.invstd + v.c, v.count);
  const Vec gate = vector_or(gate_vector, v.c, v.count, 1.0f);
  const float* x = p.x() + v.offset + v.c;
  float* dx = p.dx + v.offset + v.c;
  Vec total[5];
  sum_rows(0, v.rows, total, [&](Vec(&sum)[5], int64_t row) {
    const Vec g = load(v.tile + row * kPanel);
    v.store_row(dx + row * p.in, g);
    const ValueAndGrad act =
        add_gate_and_norm<kAct>(g, load_lanes(x + row * p.in, v.count), scale, shift, mean, invstd, sum);
    if (activation != nullptr) store_lanes(activation + row * stride + v.c, act.value * gate, v.count);
  });
  add_sums(total, sums, p.in, v.c, v.count);
}

class Part {
 public:
  Part(const PointwiseBackwardParams& p, const PointwiseBackwardPlan& plan, int64_t part, float* scratch)
      : p_(p), plan_(plan), part_(part), dz_(scratch), a_(dz_ + plan.run_pixels * plan.dz_stride) {
    tile_ = scratch + plan.run_floats;
    float* memory = tile_ + kPointwiseRows * kPanel;
    const BatchNormGrad& grad = p.incoming.grad;
    const float* from[] = {grad.a, grad.b, grad.c, grad.mean};
    float** to[] = {&formula_.a, &formula_.b, &formula_.rest, &formula_.mean};
    for (int i = 0; i < 4; ++i, memory += plan.dz_stride) {
      *to[i] = memory;
      if (from[i] == nullptr) {
        std::fill_n(memory, plan.dz_stride, i == 0 ? 1.0f : 0.0f);
      } else {
        std::fill(std::copy_n(from[i], p.out, memory), memory + plan.dz_stride, 0.0f);
      }
    }
    segment_ = rows_of(p.out, p.forms_dz() ? plan.dz_stride : p.out);
    gemm_ = rows_times_panels(segment_, p.panels, p.in);
    forms_activation_ = p.forms_activation() && p.dweight != nullptr;
    past_caches_ = writes_past_caches(p.dx, p.batch * p.rows * p.in, p.in);
    dweight_ = p.dweight == nullptr ? nullptr : p.dweight + part * p.in * p.out;
  }

  void run() {
    if (dweight_ != nullptr) std::fill_n(dweight_, p_.in * p_.out, 0.0f);
    const int64_t units = p_.batch * plan_.bands, end = (part_ + 1) * units / plan_.parts;
    for (int64_t unit = part_ * units / plan_.parts; unit < end; ++unit) run_unit(unit);
    flush();
    finish_stores();
  }

 private:
  void run_unit(int64_t unit) {
    const int64_t image = unit / plan_.bands, band = unit % plan_.bands;
    const int64_t first = plan_.first_row(band, p_.rows), last = plan_.first_row(band + 1, p_.rows);
    if (pixels_ + last - first > plan_.run_pixels) flush();
    if (pixels_ == 0) run_first_ = image * p_.rows + first;
    float* sums = p_.sums == nullptr ? nullptr : p_.sums + unit * 5 * p_.in;
    if (sums != nullptr) std::fill_n(sums, 5 * p_.in, 0.0f);
    const int64_t blocks = divide_up(last - first, kPointwiseRows);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t row = first + block * (last - first) / blocks;
      run_block(image, image * p_.rows + row, first + (block + 1) * (last - first) / blocks - row, sums);
    }
  }

  void run_block(int64_t image, int64_t pixel, int64_t rows, float* sums) {
    const float* dz = p_.dy() + pixel * p_.out;
    if (p_.forms_dz()) {
      float* to = dz_ + pixels_ * plan_.dz_stride;
      form_dz(p_, formula_, pixel, Vec(p_.incoming.row_scale == nullptr ? 1.0f : p_.incoming.row_scale[image]), rows,
              plan_.dz_stride, to);
      dz = to;
    }
    float* activation = forms_activation_ ? a_ + pixels_ * plan_.a_stride : nullptr;
    const float* gate = p_.source.gate == nullptr ? nullptr : p_.source.gate + image * p_.in;
    if (p_.dx != nullptr) multiply_block(dz, pixel, rows, gate, sums, activation);
    if (activation != nullptr && sums == nullptr) {
      const ActivationForming forming{p_.source.scale, p_.source.shift, gate, p_.in, plan_.a_stride};
      with_activation(p_.source.act,
                      [&](auto act) { form_activation<act.value>(forming, p_.x() + pixel * p_.in, rows, activation); });
    }
    pixels_ += rows;
  }

  void multiply_block(const float* dz, int64_t pixel, int64_t rows, const float* gate, float* sums, float* activation) {
    for (int64_t panel = 0; panel < p_.panels.count; ++panel) {
      const int64_t begin = p_.panels.first(panel) * kGroup;
      const int64_t end = std::min(begin + p_.panels.width(panel) * kGroup, p_.in);
      // What is read beside the result comes while it is computed.
      const float* beside = sums == nullptr ? p_.residual : p_.x();
      if (beside != nullptr) fetch(beside + pixel * p_.in, rows, begin, end);
      multiply(dz, gemm_, 0, static_cast<int>(rows), p_.weights, panel, tile_);
      for (int64_t c = begin; c < end; c += kLanes) {
        const Column column{tile_ + c - begin, rows, c, pixel * p_.in, lanes_left(end, c), past_caches_};
        if (sums == nullptr) {
          store_column(p_, column);
        } else {
          with_activation(p_.source.act, [&](auto act) {
            finish_column<act.value>(p_, column, gate, sums, activation, plan_.a_stride);
          });
        }
      }
    }
  }

  void fetch(const float* from, int64_t rows, int64_t begin, int64_t end) const {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t c = begin; c < end; c += kGroup) __builtin_prefetch(from + row * p_.in + c, 0, 2);
    }
  }

  // Adds the pixels that have been gathered to the weight's gradient.
  void flush() {
    if (dweight_ != nullptr && pixels_ > 0) {
      const float* dz = p_.forms_dz() ? dz_ : p_.dy() + run_first_ * p_.out;
      const int64_t dz_stride = p_.forms_dz() ? plan_.dz_stride : p_.out;
      const float* a = forms_activation_ ? a_ : p_.x() + run_first_ * p_.in;
      const int64_t a_stride = forms_activation_ ? plan_.a_stride : p_.in;
      if (p_.transposed()) {
        add_outer_product({a, a_stride, p_.in, dz, dz_stride, p_.out, pixels_, dweight_});
      } else {
        add_outer_product({dz, dz_stride, p_.out, a, a_stride, p_.in, pixels_, dweight_});
      }
    }
    pixels_ = 0;
  }

  const PointwiseBackwardParams& p_;
  const PointwiseBackwardPlan& plan_;
  int64_t part_;
  float *dz_, *a_, *tile_, *dweight_;
  Formula formula_;
  Segment segment_;
  Gemm gemm_;
  bool forms_activation_, past_caches_;
  int64_t run_first_ = 0, pixels_ = 0;
};

}  // namespace

void pointwise_backward_tasks(const PointwiseBackwardParams& p, const PointwiseBackwardPlan& plan, int64_t begin,
                              int64_t end, float* scratch) {
  for (int64_t part = begin; part < end; ++part) Part(p, plan, part, scratch).run();
}

}  // namespace effnet::cpu::EFFNET_ISA
