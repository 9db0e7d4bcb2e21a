// BatchNorm's formulas on vectors of channels; compiled once per instruction set.
//
// Sums over parts are in double, in the order of the parts: a few thousand values, for which it costs next to nothing.
#include <algorithm>
#include <cmath>

#include "cpu/isa/vec.h"
#include "cpu/passes/batch_norm.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

// Channels that are summed side by side, as plain arrays that compilers keep in registers.
constexpr int64_t kSide = 16;

// f(first channel, how many) over all channels.
template <class F>
inline void for_channels(int64_t channels, F f) {
  for (int64_t c = 0; c < channels; c += kSide) f(c, std::min(kSide, channels - c));
}

// add(value, i) for every part and channel i of `count`; a whole group has a constant length.
template <class F>
inline void for_parts(const float* from, int64_t parts, int64_t stride, int64_t count, F add) {
  if (count == kSide) {
    for (int64_t part = 0; part < parts; ++part, from += stride) {
      for (int64_t i = 0; i < kSide; ++i) add(from + i, i);
    }
  } else {
    for (int64_t part = 0; part < parts; ++part, from += stride) {
      for (int64_t i = 0; i < count; ++i) add(from + i, i);
    }
  }
}

}  // namespace

void batch_norm_finalize_vectors(const BatchNormFinalizeParams& p) {
  const int64_t channels = p.channels;
  for_channels(channels, [&](int64_t first, int64_t count) {
    double total[kSide] = {}, mean[kSide] = {}, m2[kSide] = {};
    for_parts(p.stats + first, p.parts, 3 * channels, count, [&](const float* at, int64_t i) {
      total[i] += double{at[0]};
      mean[i] += double{at[0]} * double{at[channels]};
    });
    for (int64_t i = 0; i < kSide; ++i) {
      total[i] = std::max(total[i], 1.0);
      mean[i] /= total[i];
    }
    for_parts(p.stats + first, p.parts, 3 * channels, count, [&](const float* at, int64_t i) {
      const double delta = double{at[channels]} - mean[i];
      m2[i] += double{at[2 * channels]} + double{at[0]} * (delta * delta);
    });
    for (int64_t i = 0; i < count; ++i) {
      float* out = p.out + first + i;
      const double var = m2[i] / total[i];
      const float invstd = static_cast<float>(1.0 / std::sqrt(var + p.eps));
      const float scale = p.weight == nullptr ? invstd : p.weight[first + i] * invstd;
      out[0] = static_cast<float>(mean[i]);
      out[channels] = static_cast<float>(var);
      out[2 * channels] = invstd;
      out[3 * channels] = scale;
      out[4 * channels] =
          static_cast<float>((p.bias == nullptr ? 0.0 : double{p.bias[first + i]}) - mean[i] * double{scale});
    }
  });
}

void batch_norm_backward_vectors(const BatchNormBackwardParams& p) {
  const int64_t channels = p.channels;
  const double share = p.count > 0 ? -1.0 / static_cast<double>(p.count) : 0.0;
  for_channels(channels, [&](int64_t first, int64_t count) {
    double bias[kSide] = {}, weight[kSide] = {};
    for_parts(p.sums + first, p.parts, 2 * channels, count, [&](const float* at, int64_t i) {
      bias[i] += double{at[0]};
      weight[i] += double{at[channels]};
    });
    for (int64_t i = 0; i < count; ++i) {
      const int64_t c = first + i;
      p.params[c] = static_cast<float>(bias[i]);
      p.params[channels + c] = static_cast<float>(weight[i]);
      const bool frozen = p.count == 0;
      const double factor = frozen ? 0.0 : share * double{p.scale[c]};
      p.formula[c] = frozen ? 0.0f : static_cast<float>(factor * double{p.invstd[c]} * weight[i]);
      p.formula[channels + c] = frozen ? 0.0f : static_cast<float>(factor * bias[i]);
    }
  });
}

void gate_sums_vectors(const GateSumsParams& p) {
  const int64_t channels = p.channels, part = p.batch * channels;
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t row = 0; row < 2; ++row) {
      const float* sums = p.sums + (1 + row) * part + n * channels;
      float* out = p.out + (2 * n + row) * channels;
      for (int64_t c = 0; c < channels; ++c) {
        float sum = sums[c];
        if (p.gate != nullptr) sum *= p.gate[n * channels + c];
        if (p.pool_grad != nullptr) sum += p.pool_grad[n * channels + c] * sums[2 * part + c];
        out[c] = sum;
      }
    }
  }
}

}  // namespace effnet::cpu::EFFNET_ISA
