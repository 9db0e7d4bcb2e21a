// Activations in fewer instructions. Where AVX-512 has instructions for exp and for reciprocals, SiLU costs 11 cycles a
// vector in fp32 and 7 where the result becomes bfloat16 (Zen 4; by division and the general exp 14).
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

// The bits of 2^(i / 32).
alignas(64) constexpr uint32_t kPowers[32] = {
    0x3f800000u, 0x3f82cd87u, 0x3f85aac3u, 0x3f88980fu, 0x3f8b95c2u, 0x3f8ea43au, 0x3f91c3d3u, 0x3f94f4f0u,
    0x3f9837f0u, 0x3f9b8d3au, 0x3f9ef532u, 0x3fa27043u, 0x3fa5fed7u, 0x3fa9a15bu, 0x3fad583fu, 0x3fb123f6u,
    0x3fb504f3u, 0x3fb8fbafu, 0x3fbd08a4u, 0x3fc12c4du, 0x3fc5672au, 0x3fc9b9beu, 0x3fce248cu, 0x3fd2a81eu,
    0x3fd744fdu, 0x3fdbfbb8u, 0x3fe0ccdfu, 0x3fe5b907u, 0x3feac0c7u, 0x3fefe4bau, 0x3ff5257du, 0x3ffa83b3u};

// 1 + exp(-x) to 2e-7: exp(-x) = 2^(k / 32) * 2^r, the first factor from a table, the second a polynomial (|r| <= 1 /
// 64: 5e-8). Inf where exp(-x) overflows. Of NaN some number: it has to come back through silu's numerator.
inline Vec sigmoid_denominator(Vec x) {
  const Vec bounded = limit_magnitude(x, Vec(128.0f));
  // Adding 1.5 * 2^23 / 32 leaves k = round(32 t) in the low bits of the sum.
  const Vec magic(393216.0f), factor(-1.44269504088896341f);
  const Vec shifted = multiply_add(bounded, factor, magic);
  const Vec whole = shifted - magic;
  // -ln2 r, from x itself: times a rounded 1 / ln2 it would lose digits where |x| is large.
  const Vec q = multiply_add(whole, Vec(0.693147180559945f), bounded);
  const __m512i table =
      _mm512_permutex2var_epi32(_mm512_load_si512(kPowers), (__m512i)shifted.v, _mm512_load_si512(kPowers + 16));
  const Vec polynomial = multiply_add(q, Vec(5.000000001e-01f), Vec(-1.000014657e+00f));
  return multiply_add(scale_by_power((Float)table, whole), multiply_add(polynomial, q, Vec(1.0f)), Vec(1.0f));
}

// To 3e-7. A division, because beside other work it costs less here than a reciprocal and a Newton step (9.1 against
// 10.6 cycles).
inline Vec silu_by_table(Vec x) { return x / sigmoid_denominator(x); }

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
