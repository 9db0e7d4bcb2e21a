// Activations for inference. Where AVX-512 has instructions for exp and for reciprocals, SiLU costs 11 cycles a vector
// in fp32 and 7 where the result becomes bfloat16 (Zen 4; by division and the general exp 14).
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
inline Vec limit_magnitude(Vec x, Vec bound) {
  Vec y;
  asm("vrangeps $2, %2, %1, %0" : "=v"(y.v) : "v"(x.v), "v"(bound.v));
  return y;
}

// 2^(i / 32)
alignas(64) constexpr float kPowers[32] = {
    1.0f,        1.02189715f, 1.04427378f, 1.0671404f,  1.09050773f, 1.11438674f, 1.13878863f, 1.16372486f,
    1.18920712f, 1.21524736f, 1.24185781f, 1.26905096f, 1.29683955f, 1.32523664f, 1.35425555f, 1.38390988f,
    1.41421356f, 1.44518081f, 1.47682615f, 1.50916443f, 1.54221083f, 1.57598085f, 1.61049033f, 1.64575548f,
    1.68179283f, 1.7186193f,  1.75625216f, 1.79470908f, 1.83400809f, 1.87416763f, 1.91520656f, 1.95714412f};

// x / (1 + exp(-x)) to 4e-7: exp(-x) = 2^(k / 32) * 2^r, the first factor from a table and an exponent, the second a
// polynomial (|r| <= 1 / 64: 5e-8).
inline Vec silu_by_table(Vec x) {
  // Beyond, x times the quotient is x or less than 1e-35; NaN comes back through that x.
  const Vec bounded = limit_magnitude(x, Vec(87.0f));
  // Adding 1.5 * 2^23 / 32 leaves round(32 t) in the low bits of the sum.
  const Vec magic(393216.0f), factor(-1.44269504088896341f);
  const Vec shifted = multiply_add(bounded, factor, magic);
  const Vec r = multiply_add(bounded, factor, magic - shifted);
  const Vec power =
      (Float)_mm512_permutex2var_ps(_mm512_load_ps(kPowers), (__m512i)shifted.v, _mm512_load_ps(kPowers + 16));
  const Vec mantissa = multiply_add(power * r, multiply_add(r, Vec(2.402265070e-1f), Vec(6.931573400e-1f)), power);
  const Vec e = (Float)((Uint)mantissa.v + (((Uint)shifted.v & ~31u) << 18));
  const Vec denominator = Vec(1.0f) + e;
  const Vec y = reciprocal(denominator);
  return x * multiply_add(y, multiply_add(-denominator, y, Vec(1.0f)), y);
}

// x / (1 + exp(-x)) to 1.4e-4, a fortieth of what rounding to bfloat16 does: a minimax polynomial of 2^r on [0, 1), and
// the reciprocal as the instruction gives it.
inline Vec coarse_silu(Vec x) {
  const Vec t = x * Vec(-1.44269504088896341f), r = fraction(t);
  Vec p = multiply_add(r, Vec(7.802452266e-2f), Vec(2.260671554e-1f));
  p = multiply_add(p, r, Vec(6.958335405e-1f));
  p = multiply_add(p, r, Vec(9.999252186e-1f));
  return x * reciprocal(Vec(1.0f) + scale_by_power(p, t));
}
#endif

template <Activation kAct, bool kCoarse>
inline Vec quick_activate(Vec x) {
#if defined(__AVX512F__)
  if constexpr (kAct == Activation::kSilu) return kCoarse ? coarse_silu(x) : silu_by_table(x);
#endif
  return activate<kAct>(x);
}

}  // namespace effnet::cpu::EFFNET_ISA
