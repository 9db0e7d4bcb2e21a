// Derivatives of the activations for registers of floats; compiled once per instruction set.
#pragma once

#include "common/activation_grad.h"
#include "cpu/isa/act.h"
#include "cpu/isa/vec.h"

namespace effnet::cpu::EFFNET_ISA {

inline Vec select_greater(Vec x, Vec bound, Vec a, Vec b) { return x.v > bound.v ? a.v : b.v; }
inline Vec select_at_most(Vec x, Vec bound, Vec a, Vec b) { return x.v <= bound.v ? a.v : b.v; }

struct ValueAndGrad {
  Vec value, grad;
};

// The sigmoid inside silu; some number where n is NaN, which comes back where it is multiplied by n.
inline Vec sigmoid_of_silu(Vec n) {
#if defined(__AVX512F__)
  return Vec(1.0f) / sigmoid_denominator(n);
#else
  return sigmoid(n);
#endif
}

// act(n) and act'(n); silu's exp and division are done once for both.
template <Activation kAct>
inline ValueAndGrad activate_with_grad(Vec n) {
  if constexpr (kAct == Activation::kSilu) {
    const Vec s = sigmoid_of_silu(n);
    const Vec value = n * s;
    return {value, multiply_add(value, Vec(1.0f) - s, s)};
  } else {
    return {activate<kAct>(n), activate_grad<kAct>(n)};
  }
}

// act'(n)
template <Activation kAct>
inline Vec quick_activate_grad(Vec n) {
  if constexpr (kAct == Activation::kSilu) {
    return activate_with_grad<kAct>(n).grad;
  } else {
    return activate_grad<kAct>(n);
  }
}

}  // namespace effnet::cpu::EFFNET_ISA
