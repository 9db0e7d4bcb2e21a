// fp16 of the compiler, under CUDA's names. Conversions round to nearest even, as the device's do.
#pragma once

#include "cuda_on_cpu.h"

using __half = _Float16;
struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half v) { return static_cast<float>(v); }
inline float2 __half22float2(__half2 v) { return {static_cast<float>(v.x), static_cast<float>(v.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {static_cast<__half>(x), static_cast<__half>(y)}; }
