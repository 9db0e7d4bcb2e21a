// Activations in fewer instructions. Where AVX-512 has instructions for exp and for reciprocals, SiLU costs 9 cycles a
// vector in fp32 and 7 where the result becomes bfloat16 (Zen 4; by division and the general exp 14), in units 7.9 and
// 5.6. What counts are multiplications, and a division as three of them: additions and comparisons run beside them.
#pragma once

#include "cpu/isa/vec.h"

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

// 2^whole for multiples of 1 / 32, which are the low bits of `shifted`, too.
inline Vec table_power(Vec shifted, Vec whole) {
  const __m512i table =
      _mm512_permutex2var_epi32(_mm512_load_si512(kPowers), (__m512i)shifted.v, _mm512_load_si512(kPowers + 16));
  return scale_by_power((Float)table, whole);
}

// 1 + exp(-x) to 2e-7: exp(-x) = 2^(k / 32) * 2^r, the first factor from a table, the second a polynomial (|r| <= 1 /
// 64: 5e-8). Inf where exp(-x) overflows. Of NaN some number: it has to come back through silu's numerator.
inline Vec sigmoid_denominator(Vec x) {
  const Vec bounded = limit_magnitude(x, Vec(128.0f));
  // Adding 1.5 * 2^23 / 32 leaves k = round(32 t) in the low bits of the sum.
  const Vec magic(393216.0f), factor(-1.44269504088896341f);
  const Vec shifted = multiply_add(bounded, factor, magic);
  const Vec whole = shifted - magic;
  // -ln2 r, from x itself: times a rounded 1 / ln2 it would lose digits where |x| is large.
  const Vec q = reduce_by_ln2(bounded, -whole);
  const Vec polynomial = multiply_add(q, Vec(5.000000001e-01f), Vec(-1.000014657e+00f));
  return multiply_add(table_power(shifted, whole), multiply_add(polynomial, q, Vec(1.0f)), Vec(1.0f));
}

// To 3e-7. A division, because beside other work it costs less here than a reciprocal and a Newton step (9.1 against
// 10.6 cycles).
inline Vec silu_by_table(Vec x) { return x / sigmoid_denominator(x); }

// t / (1 + 2^t) to 3e-7.
inline Vec silu_in_units(Vec t) {
  const Vec bounded = limit_magnitude(t, Vec(128.0f)), magic(393216.0f);
  const Vec shifted = bounded + magic, whole = shifted - magic, r = bounded - whole;
  const Vec polynomial = multiply_add(r, Vec(2.402265070e-01f), Vec(6.931573400e-01f));
  return t / multiply_add(table_power(shifted, whole), multiply_add(polynomial, r, Vec(1.0f)), Vec(1.0f));
}

// 1 / (1 + 2^t) to 1.4e-4, a fortieth of what rounding to bfloat16 does: a minimax polynomial of 2^r on [0, 1), and the
// reciprocal as the instruction gives it.
inline Vec coarse_sigmoid(Vec t) {
  const Vec r = fraction(t);
  Vec p = multiply_add(r, Vec(7.802452266e-2f), Vec(2.260671554e-1f));
  p = multiply_add(p, r, Vec(6.958335405e-1f));
  p = multiply_add(p, r, Vec(9.999252186e-1f));
  return reciprocal(Vec(1.0f) + scale_by_power(p, t));
}
inline Vec coarse_silu(Vec x) { return x * coarse_sigmoid(x * Vec(-1.44269504088896341f)); }
#endif

template <Activation kAct, bool kCoarse>
inline Vec quick_activate(Vec x) {
#if defined(__AVX512F__)
  if constexpr (kAct == Activation::kSilu) return kCoarse ? coarse_silu(x) : silu_by_table(x);
#endif
  return activate<kAct>(x);
}

// The same with SiLU in units (engine/compile.h).
template <Activation kAct, bool kCoarse>
inline Vec activate_in_units(Vec t) {
  if constexpr (kAct != Activation::kSilu) {
    return quick_activate<kAct, kCoarse>(t);
  } else {
#if defined(__AVX512F__)
    return kCoarse ? t * coarse_sigmoid(t) : silu_in_units(t);
#else
    return t / (Vec(1.0f) + power_of_two(t));
#endif
  }
}

}  // namespace effnet::cpu::EFFNET_ISA
