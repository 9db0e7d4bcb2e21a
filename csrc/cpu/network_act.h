// Activations for inference: where AVX-512 has instructions for exp and for reciprocals, SiLU and sigmoid take 14
// (fp32) or 10 (bfloat16) of them.
#pragma once

#include "vec.h"

namespace effnet::cpu::EFFNET_ISA {

#if defined(__AVX512F__)
// The instructions themselves: GCC 12 warns of an uninitialised variable in its own intrinsics for them.
inline Vec fraction(Vec x) {
  Vec y;
  asm("vreduceps $9, %1, %0" : "=v"(y.v) : "v"(x.v));  // x - floor(x); 0 for infinities
  return y;
}
inline Vec scale_by_power(Vec x, Vec exponent) {
  Vec y;
  asm("vscalefps %2, %1, %0" : "=v"(y.v) : "v"(x.v), "v"(exponent.v));  // x * 2^floor(exponent)
  return y;
}
inline Vec reciprocal(Vec x) {
  Vec y;
  asm("vrcp14ps %1, %0" : "=v"(y.v) : "v"(x.v));  // to 6.1e-5
  return y;
}
#endif

// 1 / (1 + exp(-x)). Coarse: to 1.4e-4, a fortieth of what rounding to bfloat16 does; else to 2e-7.
template <bool kCoarse>
inline Vec quick_sigmoid(Vec x) {
#if defined(__AVX512F__)
  // exp(-x) = 2^t; the polynomials are 2^r on [0, 1), minimax in the relative error (7.5e-5 and 7.5e-8).
  Vec t = x * Vec(-1.44269504088896341f);
  // The Newton step below would make 0 * inf of an infinite denominator.
  if constexpr (!kCoarse) t = minimum(Vec(126.0f), t);
  const Vec r = fraction(t);
  Vec p;
  if constexpr (kCoarse) {
    p = multiply_add(r, Vec(7.802452266e-2f), Vec(2.260671554e-1f));
    p = multiply_add(p, r, Vec(6.958335405e-1f));
    p = multiply_add(p, r, Vec(9.999252186e-1f));
  } else {
    p = multiply_add(r, Vec(1.877576673e-3f), Vec(8.989340095e-3f));
    p = multiply_add(p, r, Vec(5.582631805e-2f));
    p = multiply_add(p, r, Vec(2.401536170e-1f));
    p = multiply_add(p, r, Vec(6.931530732e-1f));
    p = multiply_add(p, r, Vec(9.999999251e-1f));
  }
  const Vec denominator = Vec(1.0f) + scale_by_power(p, t);
  const Vec y = reciprocal(denominator);
  if constexpr (kCoarse) return y;
  return multiply_add(y, multiply_add(-denominator, y, Vec(1.0f)), y);
#else
  return sigmoid(x);
#endif
}

template <Activation kAct, bool kCoarse>
inline Vec quick_activate(Vec x) {
#if defined(__AVX512F__)
  if constexpr (kAct == Activation::kSilu) return x * quick_sigmoid<kCoarse>(x);
  if constexpr (kAct == Activation::kSigmoid) return quick_sigmoid<kCoarse>(x);
#endif
  return activate<kAct>(x);
}

}  // namespace effnet::cpu::EFFNET_ISA
