// Activations, written once for every kind of value that is computed with: a float on the host, a float on the device,
// a vector of lanes on the CPU. A vector type brings its own exp, maximum, minimum (found by argument lookup).
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define EFFNET_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined: files compiled for several instruction sets include this, and the linker must not choose among
// copies.
#define EFFNET_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace effnet {

// The numbers are the ones that cross the op boundary as `in_act` and `act`.
enum class Activation : int32_t {
  kNone = 0,
  kSilu = 1,
  kRelu = 2,
  kRelu6 = 3,
  kHardswish = 4,
  kSigmoid = 5,
  kHardsigmoid = 6,
};
constexpr int32_t kActivationCount = 7;

// Both propagate NaN from `x`, as torch does: a comparison with NaN is false, which picks x.
EFFNET_HOST_DEVICE float maximum(float bound, float x) { return bound > x ? bound : x; }
EFFNET_HOST_DEVICE float minimum(float bound, float x) { return bound < x ? bound : x; }

EFFNET_HOST_DEVICE float exponential(float x) {
#if defined(__CUDA_ARCH__)
  return __expf(x);
#else
  return std::exp(x);
#endif
}

template <class T>
EFFNET_HOST_DEVICE T sigmoid(T x) {
  return T(1.0f) / (T(1.0f) + exponential(-x));
}

// x / (1 + exp(-x)) rather than x * sigmoid(x): one rounding fewer, and the limits at +-large x are exact. At -inf it
// is NaN, as torch.nn.functional.silu is.
template <class T>
EFFNET_HOST_DEVICE T silu(T x) {
  return x / (T(1.0f) + exponential(-x));
}

// relu6(x + 3) / 6
template <class T>
EFFNET_HOST_DEVICE T hardsigmoid(T x) {
  return minimum(T(6.0f), maximum(T(0.0f), x + T(3.0f))) * T(1.0f / 6.0f);
}

template <Activation kAct, class T>
EFFNET_HOST_DEVICE T activate(T x) {
  if constexpr (kAct == Activation::kSilu) {
    return silu(x);
  } else if constexpr (kAct == Activation::kRelu) {
    return maximum(T(0.0f), x);
  } else if constexpr (kAct == Activation::kRelu6) {
    return minimum(T(6.0f), maximum(T(0.0f), x));
  } else if constexpr (kAct == Activation::kHardswish) {
    return x * hardsigmoid(x);
  } else if constexpr (kAct == Activation::kSigmoid) {
    return sigmoid(x);
  } else if constexpr (kAct == Activation::kHardsigmoid) {
    return hardsigmoid(x);
  } else {
    static_assert(kAct == Activation::kNone, "every activation has a branch");
    return x;
  }
}

}  // namespace effnet
