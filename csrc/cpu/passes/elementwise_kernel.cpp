// The elementwise pass and the small fully connected layers of squeeze-and-excite; compiled once per instruction set.
#include "cpu/isa/act.h"
#include "cpu/isa/storage.h"
#include "cpu/isa/vec.h"
#include "cpu/passes/elementwise.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

inline int lanes_left(int64_t all, int64_t c) { return all - c < kLanes ? static_cast<int>(all - c) : kLanes; }

template <class T, Activation kAct>
void run_band(const ElementwiseParams& p, int64_t image, int64_t first_row, int64_t last_row, float* sums) {
  const int64_t offset = image * p.rows * p.channels;
  const T* x = static_cast<const T*>(p.x) + offset;
  const T* residual = p.residual == nullptr ? nullptr : static_cast<const T*>(p.residual) + offset;
  T* y = p.y == nullptr ? nullptr : static_cast<T*>(p.y) + offset;
  const float* multiplier = p.multiplier == nullptr ? nullptr : p.multiplier + image * p.channels;
  if (sums != nullptr) std::memset(sums, 0, sizeof(float) * p.channels);

  for (int64_t row = first_row; row < last_row; ++row) {
    const int64_t base = row * p.channels;
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      const int count = lanes_left(p.channels, c);
      Vec value = load_lanes(x + base + c, count);
      if (p.scale != nullptr) value = value * load_lanes(p.scale + c, count);
      if (p.shift != nullptr) value = value + load_lanes(p.shift + c, count);
      value = quick_activate<kAct, false>(value);
      if (multiplier != nullptr) value = value * load_lanes(multiplier + c, count);
      if (residual != nullptr) value = value + load_lanes(residual + base + c, count);
      if (sums != nullptr) store_lanes(sums + c, load_lanes(sums + c, count) + value, count);
      if (y != nullptr) store_lanes(y + base + c, value, count);
    }
  }
}

template <class T>
float dot(const T* weight, const float* in, int64_t inputs) {
  Vec sums[4] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= inputs; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      sums[k] = multiply_add(load(weight + i + k * kLanes), load(in + i + k * kLanes), sums[k]);
    }
  }
  for (; i < inputs; i += kLanes) {
    const int count = lanes_left(inputs, i);
    sums[0] = multiply_add(load_lanes(weight + i, count), load_lanes(in + i, count), sums[0]);
  }
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
void run_linear(const LinearParams& p, int64_t begin, int64_t end) {
  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t output = item % p.outputs;
    const float* in = p.in + item / p.outputs * p.inputs;
    const float sum = dot(weight + output * p.inputs, in, p.inputs);
    p.out[item] = bias == nullptr ? sum : sum + as_float(bias[output]);
  }
  with_activation(p.act, [&](auto known) {
    for (int64_t item = begin; item < end; item += kLanes) {
      const int count = lanes_left(end, item);
      store_lanes(p.out + item, activate<known.value>(load_lanes(p.out + item, count)), count);
    }
  });
}

}  // namespace

void elementwise_tasks(const ElementwiseParams& p, const ElementwisePlan& plan, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / plan.bands;
    const int64_t first_row = task % plan.bands * plan.band_rows;
    const int64_t last_row = first_row + plan.band_rows < p.rows ? first_row + plan.band_rows : p.rows;
    float* sums = p.pooled == nullptr ? nullptr : plan.partial_sums + task * p.channels;
    with_activation(p.act, [&](auto known) {
      with_storage(p.dtype,
                   [&](auto stored) { run_band<decltype(stored), known.value>(p, image, first_row, last_row, sums); });
    });
  }
}

void linear_tasks(const LinearParams& p, int64_t begin, int64_t end) {
  with_storage(p.dtype, [&](auto stored) { run_linear<decltype(stored)>(p, begin, end); });
}

}  // namespace effnet::cpu::EFFNET_ISA
