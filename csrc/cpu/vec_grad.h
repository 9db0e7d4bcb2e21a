// Derivatives of the activations for registers of floats; compiled once per instruction set.
#pragma once

#include "../common/activation_grad.h"
#include "vec.h"

namespace effnet::cpu::EFFNET_ISA {

inline Vec select_greater(Vec x, Vec bound, Vec a, Vec b) { return x.v > bound.v ? a.v : b.v; }

struct ValueAndGrad {
  Vec value, grad;
};

// act(n) and act'(n); silu's exp and division are done once for both.
template <Activation kAct>
inline ValueAndGrad activate_with_grad(Vec n) {
  if constexpr (kAct == Activation::kSilu) {
    const Vec s = sigmoid(n);
    const Vec value = n * s;
    return {value, multiply_add(value, Vec(1.0f) - s, s)};
  } else {
    return {activate<kAct>(n), activate_grad<kAct>(n)};
  }
}

}  // namespace effnet::cpu::EFFNET_ISA
