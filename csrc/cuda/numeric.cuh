// Arithmetic of the kernels: fast fp32, pairs of channels, and their storage as fp32, fp16 or bf16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "../common/activation.h"
#include "../common/activation_grad.h"

namespace effnet::cuda {

#if defined(__CUDACC__)
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char shared[];
  return shared;
}
#else
inline unsigned char* dynamic_shared() { return cuda_on_cpu_dynamic_shared(); }
#endif

// fp32 whose division and exponential are single special-function instructions (relative error below 2^-20 where the
// result is a normal number). activation.h is written for any such type.
struct Fast {
  float v;
  __device__ __forceinline__ explicit Fast(float value) : v(value) {}
};

__device__ __forceinline__ Fast operator+(Fast a, Fast b) { return Fast(a.v + b.v); }
__device__ __forceinline__ Fast operator-(Fast a, Fast b) { return Fast(a.v - b.v); }
__device__ __forceinline__ Fast operator*(Fast a, Fast b) { return Fast(a.v * b.v); }
__device__ __forceinline__ Fast operator-(Fast a) { return Fast(-a.v); }
__device__ __forceinline__ Fast maximum(Fast bound, Fast x) { return Fast(effnet::maximum(bound.v, x.v)); }
__device__ __forceinline__ Fast minimum(Fast bound, Fast x) { return Fast(effnet::minimum(bound.v, x.v)); }
__device__ __forceinline__ Fast select_greater(Fast x, Fast bound, Fast a, Fast b) {
  return Fast(effnet::select_greater(x.v, bound.v, a.v, b.v));
}
__device__ __forceinline__ Fast select_at_most(Fast x, Fast bound, Fast a, Fast b) {
  return Fast(effnet::select_at_most(x.v, bound.v, a.v, b.v));
}

// The .ftz forms: the plain ones spend two more instructions on subnormal arguments, which no result here depends on.
__device__ __forceinline__ Fast operator/(Fast a, Fast b) {
#if defined(__CUDA_ARCH__)
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(b.v));
  return Fast(a.v * reciprocal);
#else
  return Fast(a.v * (1.0f / b.v));
#endif
}

__device__ __forceinline__ Fast exponential(Fast x) {
  const float scaled = x.v * 1.44269504f;
#if defined(__CUDA_ARCH__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(scaled));
  return Fast(power);
#else
  return Fast(exp2f(scaled));
#endif
}

template <Activation kAct>
__device__ __forceinline__ float activate_fast(float x) {
  return activate<kAct>(Fast(x)).v;
}

template <Activation kAct>
__device__ __forceinline__ float activate_grad_fast(float x) {
  return activate_grad<kAct>(Fast(x)).v;
}

template <Activation kAct>
using ActivationTag = std::integral_constant<Activation, kAct>;

// Calls `body(ActivationTag<act>{})`. Meant to enclose a loop: the branch is uniform and taken once a row, and the loop
// inside sees the activation as a constant. Numbers outside the enumeration are refused on the host.
template <class Body>
__device__ __forceinline__ void with_activation(Activation act, Body&& body) {
  switch (act) {
    case Activation::kNone:
      return body(ActivationTag<Activation::kNone>{});
    case Activation::kSilu:
      return body(ActivationTag<Activation::kSilu>{});
    case Activation::kRelu:
      return body(ActivationTag<Activation::kRelu>{});
    case Activation::kRelu6:
      return body(ActivationTag<Activation::kRelu6>{});
    case Activation::kHardswish:
      return body(ActivationTag<Activation::kHardswish>{});
    case Activation::kSigmoid:
      return body(ActivationTag<Activation::kSigmoid>{});
    case Activation::kHardsigmoid:
      return body(ActivationTag<Activation::kHardsigmoid>{});
  }
}

__device__ __forceinline__ float2 pair(float value) { return make_float2(value, value); }
__device__ __forceinline__ float2 operator+(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
__device__ __forceinline__ float2 operator-(float2 a, float2 b) { return make_float2(a.x - b.x, a.y - b.y); }
__device__ __forceinline__ float2 operator*(float2 a, float2 b) { return make_float2(a.x * b.x, a.y * b.y); }
__device__ __forceinline__ float2 fma(float2 a, float2 b, float2 c) {
  return make_float2(fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y));
}

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

// Two neighbouring channels as they lie in memory.
template <class T>
struct Packed;

template <>
struct Packed<float> {
  using Type = float2;
  static __device__ __forceinline__ float2 unpack(float2 v) { return v; }
  static __device__ __forceinline__ float2 pack(float2 v) { return v; }
};

template <>
struct Packed<__half> {
  using Type = __half2;
  static __device__ __forceinline__ float2 unpack(__half2 v) { return __half22float2(v); }
  static __device__ __forceinline__ __half2 pack(float2 v) { return __floats2half2_rn(v.x, v.y); }
};

template <>
struct Packed<__nv_bfloat16> {
  using Type = __nv_bfloat162;
  static __device__ __forceinline__ float2 unpack(__nv_bfloat162 v) { return __bfloat1622float2(v); }
  static __device__ __forceinline__ __nv_bfloat162 pack(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
};

template <class T>
__device__ __forceinline__ T from_float(float v) {
  return Packed<T>::pack(pair(v)).x;
}

// `p` must be aligned to two elements; shared memory always is.
template <class T>
__device__ __forceinline__ float2 load_pair(const T* p) {
  return Packed<T>::unpack(*reinterpret_cast<const typename Packed<T>::Type*>(p));
}

// The first `channels` (0, 1 or 2) of two elements that may not be aligned; the others are 0.
template <class T>
__device__ __forceinline__ float2 load_pair(const T* p, int channels, bool aligned) {
  if (aligned && channels == 2) return load_pair(p);
  return make_float2(channels > 0 ? to_float(p[0]) : 0.0f, channels > 1 ? to_float(p[1]) : 0.0f);
}

template <class T>
__device__ __forceinline__ void store_pair(T* p, float2 value, int channels, bool aligned) {
  const typename Packed<T>::Type packed = Packed<T>::pack(value);
  if (aligned && channels == 2) {
    *reinterpret_cast<typename Packed<T>::Type*>(p) = packed;
    return;
  }
  if (channels > 0) p[0] = packed.x;
  if (channels > 1) p[1] = packed.y;
}

// What a reader of the stored value will see.
template <class T>
__device__ __forceinline__ float2 round_pair(float2 value) {
  return Packed<T>::unpack(Packed<T>::pack(value));
}

// Vectors of the package are fp32 and contiguous, but may start anywhere: no vector loads.
__device__ __forceinline__ float2 load_vector(const float* v, int64_t channel, int channels, float otherwise) {
  if (v == nullptr) return pair(otherwise);
  return make_float2(channels > 0 ? v[channel] : 0.0f, channels > 1 ? v[channel + 1] : 0.0f);
}

__device__ __forceinline__ float load_channel(const ChannelVector& v, int64_t channel) {
  switch (v.type) {
    case StorageType::kFloat32:
      return static_cast<const float*>(v.data)[channel];
    case StorageType::kFloat16:
      return to_float(static_cast<const __half*>(v.data)[channel]);
    case StorageType::kBFloat16:
      return to_float(static_cast<const __nv_bfloat16*>(v.data)[channel]);
  }
  __builtin_unreachable();
}

__device__ __forceinline__ float2 load_vector(const ChannelVector& v, int64_t channel, int channels, float otherwise) {
  if (v.data == nullptr) return pair(otherwise);
  return make_float2(channels > 0 ? load_channel(v, channel) : 0.0f,
                     channels > 1 ? load_channel(v, channel + 1) : 0.0f);
}

}  // namespace effnet::cuda
