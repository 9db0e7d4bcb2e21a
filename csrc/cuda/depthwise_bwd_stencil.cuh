// The two stencils of the backward as register work of one thread, row by row.
//
// Coordinates are those of the padded input divided by the stride: step t is row t of dz together with the rows
// [t * stride, (t + 1) * stride) of padded x, which no later row of dz touches.
#pragma once

#include "depthwise_traits.cuh"

namespace effnet::cuda {

template <class Traits>
struct DgradStencil {
  static constexpr int kKernel = Traits::kKernel;
  static constexpr int kStride = Traits::kStride;
  static constexpr int kColumns = Traits::kXColumns;
  // Rows of dx that are not complete; a multiple of the stride, so that the ring closes after kBackwardPhases steps.
  static constexpr int kRing = Traits::kLive * kStride;

  float2 weight[Traits::kTaps];
  float2 sum[kRing][kColumns];    // slot = padded row modulo kRing
  float2 out[kStride][kColumns];  // the rows of dx that became complete

  // Row t of dz reaches the padded rows t * stride + kh: the last kh opens a row, kh < stride completes one.
  template <int kPhase>
  __device__ __forceinline__ void accumulate(const float* row) {
    constexpr int kWidth = Traits::kDzColumns + Traits::kHalo;
    float2 in[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) in[i] = load_pair(row + i * kGroupChannels);
#pragma unroll
    for (int kh = 0; kh < kKernel; ++kh) {
      const int slot = (kPhase * kStride + kh) % kRing;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        float2 value = kh >= kKernel - kStride ? pair(0.0f) : sum[slot][j];
        // dz column q reaches padded column q * stride + kw; in[i] is column i - kHalo of this thread's.
#pragma unroll
        for (int kw = j % kStride; kw < kKernel; kw += kStride) {
          value = fma(weight[kh * kKernel + kw], in[(j - kw + kStride * Traits::kHalo) / kStride], value);
        }
        (kh < kStride ? out[kh < kStride ? kh : 0] : sum[slot])[j] = value;
      }
    }
  }

  // The same for a row of zeros.
  template <int kPhase>
  __device__ __forceinline__ void skip() {
#pragma unroll
    for (int kh = 0; kh < kKernel; ++kh) {
      const int slot = (kPhase * kStride + kh) % kRing;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const bool opens = kh >= kKernel - kStride;
        if (kh < kStride) out[kh < kStride ? kh : 0][j] = opens ? pair(0.0f) : sum[slot][j];
        if (opens) sum[slot][j] = pair(0.0f);
      }
    }
  }
};

template <class Traits>
struct WgradStencil {
  static constexpr int kKernel = Traits::kKernel;
  static constexpr int kStride = Traits::kStride;
  static constexpr int kColumns = Traits::kDzColumns;

  float2 dweight[Traits::kTaps];
  float2 dz[Traits::kLive][kColumns];  // the last rows of dz; slot = row modulo kLive

  template <int kPhase>
  __device__ __forceinline__ void take(const float* row, bool zeros) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) dz[kPhase][j] = zeros ? pair(0.0f) : load_pair(row + j * kGroupChannels);
  }

  // Row `kPart` of a step's rows of x meets row t - i of dz at kh = kPart + i * stride.
  template <int kPhase, int kPart>
  __device__ __forceinline__ void accumulate(const float* row) {
    float2 in[Traits::kInputWidth];
#pragma unroll
    for (int i = 0; i < Traits::kInputWidth; ++i) in[i] = load_pair(row + i * kGroupChannels);
#pragma unroll
    for (int kh = kPart; kh < kKernel; kh += kStride) {
      const int slot = (kPhase - kh / kStride + Traits::kLive) % Traits::kLive;
#pragma unroll
      for (int kw = 0; kw < kKernel; ++kw) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          float2& sum = dweight[kh * kKernel + kw];
          sum = fma(dz[slot][j], in[j * kStride + kw], sum);
        }
      }
    }
  }
};

}  // namespace effnet::cuda
