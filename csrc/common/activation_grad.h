// Derivatives of the activations in activation.h, at the value before the activation. At the kinks they are the
// one-sided derivatives that PyTorch's own backward uses, and at NaN what it uses there: relu, relu6 and hardswish let
// the gradient pass. A value type brings `select_greater(x, bound, a, b)` = x > bound ? a : b, and `select_at_most` = x
// <= bound ? a : b.
#pragma once

#include "activation.h"

namespace effnet {

EFFNET_HOST_DEVICE float select_greater(float x, float bound, float a, float b) { return x > bound ? a : b; }
EFFNET_HOST_DEVICE float select_at_most(float x, float bound, float a, float b) { return x <= bound ? a : b; }

template <Activation kAct, class T>
EFFNET_HOST_DEVICE T activate_grad(T x) {
  const T zero(0.0f), one(1.0f);
  if constexpr (kAct == Activation::kSilu) {
    const T s = sigmoid(x);
    return s * (one + x * (one - s));
  } else if constexpr (kAct == Activation::kRelu) {
    return select_at_most(x, zero, zero, one);
  } else if constexpr (kAct == Activation::kRelu6) {
    return select_at_most(x, zero, zero, select_at_most(T(6.0f), x, zero, one));
  } else if constexpr (kAct == Activation::kHardswish) {
    const T inner = (x + x + T(3.0f)) * T(1.0f / 6.0f);
    return select_at_most(x, T(-3.0f), zero, select_greater(T(3.0f), x, inner, one));
  } else if constexpr (kAct == Activation::kSigmoid) {
    const T s = sigmoid(x);
    return s * (one - s);
  } else if constexpr (kAct == Activation::kHardsigmoid) {
    return select_greater(x, T(-3.0f), select_greater(T(3.0f), x, T(1.0f / 6.0f), zero), zero);
  } else {
    static_assert(kAct == Activation::kNone, "every activation has a branch");
    return one;
  }
}

}  // namespace effnet
