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

// The bits of 2^(i / 32) less i << 18: adding (32 n + i) << 18 makes them 2^(n + i / 32).
alignas(64) constexpr uint32_t kPowers[32] = {
    0x3f800000u, 0x3f7ecd87u, 0x3f7daac3u, 0x3f7c980fu, 0x3f7b95c2u, 0x3f7aa43au, 0x3f79c3d3u, 0x3f78f4f0u,
    0x3f7837f0u, 0x3f778d3au, 0x3f76f532u, 0x3f767043u, 0x3f75fed7u, 0x3f75a15bu, 0x3f75583fu, 0x3f7523f6u,
    0x3f7504f3u, 0x3f74fbafu, 0x3f7508a4u, 0x3f752c4du, 0x3f75672au, 0x3f75b9beu, 0x3f76248cu, 0x3f76a81eu,
    0x3f7744fdu, 0x3f77fbb8u, 0x3f78ccdfu, 0x3f79b907u, 0x3f7ac0c7u, 0x3f7be4bau, 0x3f7d257du, 0x3f7e83b3u};

// x / (1 + exp(-x)) to 3e-7: exp(-x) = 2^(k / 32) * 2^r, the first factor from a table, the second a polynomial
// (|r| <= 1 / 64: 5e-8). A division, because beside other work it costs less here than a reciprocal and a Newton step
// (9.1 against 10.6 cycles).
inline Vec silu_by_table(Vec x) {
  // Beyond, the quotient is x or less than 1e-35; NaN comes back through the numerator.
  const Vec bounded = limit_magnitude(x, Vec(87.0f));
  // Adding 1.5 * 2^23 / 32 leaves k = round(32 t) in the low bits of the sum.
  const Vec magic(393216.0f), factor(-1.44269504088896341f);
  const Vec shifted = multiply_add(bounded, factor, magic);
  const Vec r = multiply_add(bounded, factor, magic - shifted);
  const __m512i table =
      _mm512_permutex2var_epi32(_mm512_load_si512(kPowers), (__m512i)shifted.v, _mm512_load_si512(kPowers + 16));
  const Vec power = (Float)((Uint)table + ((Uint)shifted.v << 18));
  const Vec polynomial = multiply_add(r, Vec(2.402265070e-1f), Vec(6.931573400e-1f));
  return x / multiply_add(power * r, polynomial, Vec(1.0f) + power);
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
