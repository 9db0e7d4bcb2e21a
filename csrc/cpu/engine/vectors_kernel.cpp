// Products of vectors: squeeze, excite, classifier; compiled once per instruction set.
#include <algorithm>

#include "cpu/engine/items.h"
#include "cpu/isa/act.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

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

template <class T>
void run(const Step& step, int64_t item, float* scratch) {
  switch (step.kind) {
    case StepKind::kSqueeze:
      return squeeze_item<T>(step, item, scratch);
    case StepKind::kExcite:
      return excite_item<T>(step, item);
    default:
      return classify_item<T>(step, item, scratch);
  }
}

}  // namespace

void vectors_item(const Step& step, int64_t item, float* scratch) {
  with_storage(step.dtype, [&](auto stored) { run<decltype(stored)>(step, item, scratch); });
}

}  // namespace effnet::cpu::EFFNET_ISA
