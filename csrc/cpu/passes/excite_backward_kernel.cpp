// The backward of squeeze-and-excite's two small layers; compiled once per instruction set.
#include "cpu/isa/storage.h"
#include "cpu/passes/batch_norm.h"
#include "cpu/passes/channel_sums.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

// out[o] = bias[o] + sum over i of in[i] * weight[o, i]
template <class T>
void multiply_rows(const T* weight, const float* bias, const float* in, int64_t outputs, int64_t inputs, float* out) {
  for (int64_t o = 0; o < outputs; ++o, weight += inputs) {
    Vec sums[2] = {Vec(0.0f), Vec(0.0f)};
    for (int64_t i = 0; i < inputs; i += kLanes) {
      const int count = lanes_left(inputs, i);
      Vec& sum = sums[i / kLanes % 2];
      sum = multiply_add(load_lanes(weight + i, count), load_lanes(in + i, count), sum);
    }
    const float sum = sum_lanes(sums[0] + sums[1]);
    out[o] = bias == nullptr ? sum : sum + bias[o];
  }
}

// out[i] = sum over o of in[o] * from[o * stride + i], for `outputs` of i: in two chains, kLanes columns at a time.
template <class T>
void multiply_columns(const T* from, int64_t stride, const float* in, int64_t in_stride, int64_t terms, int64_t outputs,
                      float* out) {
  for (int64_t i = 0; i < outputs; i += kLanes) {
    const int count = lanes_left(outputs, i);
    Vec sums[2] = {Vec(0.0f), Vec(0.0f)};
    for (int64_t o = 0; o < terms; ++o) {
      sums[o % 2] = multiply_add(Vec(in[o * in_stride]), load_lanes(from + o * stride + i, count), sums[o % 2]);
    }
    store_lanes(out + i, sums[0] + sums[1], count);
  }
}

// g *= act'(n)
template <Activation kAct>
void through(const float* n, int64_t size, float* g) {
  for (int64_t i = 0; i < size; i += kLanes) {
    const int count = lanes_left(size, i);
    store_lanes(g + i, load_lanes(g + i, count) * activate_grad<kAct>(load_lanes(n + i, count)), count);
  }
}

template <class T>
void backward_image(const ExciteBackwardParams& p, int64_t n) {
  const T *w1 = static_cast<const T*>(p.w1), *w2 = static_cast<const T*>(p.w2);
  float *n1 = p.n1 + n * p.hidden, *a1 = p.a1 + n * p.hidden, *dn1 = p.dn1 + n * p.hidden;
  // dpooled holds the gate's value before its activation until its own is known.
  float *dn2 = p.dn2 + n * p.channels, *n2 = p.dpooled + n * p.channels;
  multiply_rows(w1, p.b1, p.pooled + n * p.channels, p.hidden, p.channels, n1);
  with_activation(p.act, [&](auto act) {
    for (int64_t r = 0; r < p.hidden; r += kLanes) {
      const int count = lanes_left(p.hidden, r);
      store_lanes(a1 + r, activate<act.value>(load_lanes(n1 + r, count)), count);
    }
  });
  multiply_rows(w2, p.b2, a1, p.channels, p.hidden, n2);
  std::copy_n(p.dgate + n * p.channels, p.channels, dn2);
  with_activation(p.gate_act, [&](auto act) { through<act.value>(n2, p.channels, dn2); });
  multiply_columns(w2, p.hidden, dn2, 1, p.channels, p.hidden, dn1);
  with_activation(p.act, [&](auto act) { through<act.value>(n1, p.hidden, dn1); });
  multiply_columns(w1, p.channels, dn1, 1, p.hidden, p.channels, p.dpooled + n * p.channels);
}

float sum_images(const float* from, int64_t stride, int64_t batch) {
  float sum = 0.0f;
  for (int64_t n = 0; n < batch; ++n) sum += from[n * stride];
  return sum;
}

}  // namespace

void excite_backward_images(const ExciteBackwardParams& p, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    with_storage(p.dtype, [&](auto stored) { backward_image<decltype(stored)>(p, n); });
  }
}

void excite_backward_weights(const ExciteBackwardParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    if (row < p.hidden) {
      multiply_columns(p.pooled, p.channels, p.dn1 + row, p.hidden, p.batch, p.channels, p.dw1 + row * p.channels);
      if (p.db1 != nullptr) p.db1[row] = sum_images(p.dn1 + row, p.hidden, p.batch);
    } else {
      const int64_t c = row - p.hidden;
      multiply_columns(p.a1, p.hidden, p.dn2 + c, p.channels, p.batch, p.hidden, p.dw2 + c * p.hidden);
      if (p.db2 != nullptr) p.db2[c] = sum_images(p.dn2 + c, p.channels, p.batch);
    }
  }
}

}  // namespace effnet::cpu::EFFNET_ISA
