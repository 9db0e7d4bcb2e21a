// The 1x1 convolution of training, one band of an image at a time; compiled once per instruction set.
#include <algorithm>

#include "cpu/isa/streaming.h"
#include "cpu/passes/moments.h"
#include "cpu/pointwise/block.h"
#include "cpu/pointwise/forward.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

class Task {
 public:
  Task(const PointwiseParams& p, int64_t task, float* scratch)
      : p_(p), formed_(scratch), tile_(scratch + kPointwiseRows * round_up(p.in, kGroup)) {
    image_ = task / p.bands;
    first_ = task % p.bands * p.rows / p.bands;
    last_ = (task % p.bands + 1) * p.rows / p.bands;
    segment_ = rows_of(p.in, p.in);
    gemm_ = rows_times_panels(segment_, p.panels, p.out);
    past_caches_ = writes_past_caches(p.y, p.batch * p.rows * p.out, p.out);
    moments_ = p.moments == nullptr ? nullptr : p.moments + task * 3 * p.out;
  }

  void run() {
    if (moments_ != nullptr) {
      std::fill_n(moments_, p_.out, static_cast<float>(last_ - first_));
      std::fill_n(moments_ + p_.out, 2 * p_.out, 0.0f);
    }
    const int64_t blocks = divide_up(last_ - first_, kPointwiseRows);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = first_ + block * (last_ - first_) / blocks;
      run_block(first, first_ + (block + 1) * (last_ - first_) / blocks - first);
    }
    finish_stores();
  }

 private:
  void run_block(int64_t first, int64_t rows) {
    const int64_t pixel = image_ * p_.rows + first;
    const float* x = p_.x + pixel * p_.in;
    if (p_.forms) {
      const float* gate = p_.gate == nullptr ? nullptr : p_.gate + image_ * p_.in;
      const ActivationForming forming{p_.scale, p_.shift, gate, p_.in, p_.in};
      with_activation(p_.act, [&](auto act) { form_activation<act.value>(forming, x, rows, formed_); });
      x = formed_;
    }
    for (int64_t panel = 0; panel < p_.panels.count; ++panel) {
      multiply(x, gemm_, 0, static_cast<int>(rows), p_.weights, panel, tile_);
      const int64_t begin = p_.panels.first(panel) * kGroup;
      const int64_t end = std::min(begin + p_.panels.width(panel) * kGroup, p_.out);
      for (int64_t c = begin; c < end; c += kLanes) {
        const float* tile = tile_ + c - begin;
        const int count = lanes_left(end, c);
        float* y = p_.y + pixel * p_.out + c;
        if (past_caches_) {
          for (int64_t row = 0; row < rows; ++row) store_past_caches(y + row * p_.out, load(tile + row * kPanel));
        } else {
          for (int64_t row = 0; row < rows; ++row) store_lanes(y + row * p_.out, load(tile + row * kPanel), count);
        }
        if (moments_ == nullptr) continue;
        const Moments block = moments_of(tile, kPanel, rows, kLanes);
        merge_moments(block, static_cast<float>(first - first_), moments_ + p_.out + c, moments_ + 2 * p_.out + c,
                      count);
      }
    }
  }

  const PointwiseParams& p_;
  float *formed_, *tile_, *moments_;
  Segment segment_;
  Gemm gemm_;
  bool past_caches_;
  int64_t image_, first_, last_;
};

}  // namespace

void pointwise_tasks(const PointwiseParams& p, int64_t begin, int64_t end, float* scratch) {
  for (int64_t task = begin; task < end; ++task) Task(p, task, scratch).run();
}

}  // namespace effnet::cpu::EFFNET_ISA
