// One register of floats. The same source serves every instruction set: GCC and Clang vector extensions, as wide as the
// flags of this translation unit allow (64 bytes AVX-512, 32 AVX2, 16 SSE2 and NEON).
//
// Files that include this header are compiled several times, so everything here lives in a namespace named after the
// instruction set (EFFNET_ISA): the linker must never merge an AVX-512 copy of an inline function with a baseline one.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/activation.h"

#ifndef EFFNET_ISA
#error "EFFNET_ISA must name the instruction set: baseline, avx2, avx512 or avx512bf16"
#endif

namespace effnet::cpu::EFFNET_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;

using Float = float __attribute__((vector_size(kVectorBytes)));
using Int = int32_t __attribute__((vector_size(kVectorBytes)));
using Uint = uint32_t __attribute__((vector_size(kVectorBytes)));
using Half = uint16_t __attribute__((vector_size(kVectorBytes / 2)));

// bfloat16 as it lies in memory.
struct BFloat16 {
  uint16_t bits;
};

struct Vec {
  Float v;

  Vec() = default;
  Vec(Float value) : v(value) {}
  // `scalar - zero` is the one broadcast both compilers fold away: scalar + zero would have to turn -0 into +0.
  explicit Vec(float scalar) : v(scalar - Float{}) {}
};

inline Vec operator+(Vec a, Vec b) { return a.v + b.v; }
inline Vec operator-(Vec a, Vec b) { return a.v - b.v; }
inline Vec operator*(Vec a, Vec b) { return a.v * b.v; }
inline Vec operator/(Vec a, Vec b) { return a.v / b.v; }
inline Vec operator-(Vec a) { return -a.v; }
// One expression, so that both compilers contract it where the instruction set has a fused multiply-add. They may leave
// it: GCC does below -O2. Where the product must not be rounded, see reduce_by_ln2.
inline Vec multiply_add(Vec a, Vec b, Vec c) { return a.v * b.v + c.v; }

// Keeps x in a register: without it GCC loads x anew for every use as a memory operand, and loads become the limit
// (3x3 stride 1 on Zen 4: 3.7 ns a vector of outputs instead of 2.5).
inline void keep_in_register(Vec& x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x.v));
#elif defined(__x86_64__)
  asm("" : "+x"(x.v));
#elif defined(__aarch64__)
  asm("" : "+w"(x.v));
#else
  (void)x;
#endif
}

inline Vec maximum(Vec bound, Vec x) { return bound.v > x.v ? bound.v : x.v; }
inline Vec minimum(Vec bound, Vec x) { return bound.v < x.v ? bound.v : x.v; }

// x - n ln2 without rounding n ln2, for whole numbers n of at most 8 bits, whatever the optimizer does.
inline Vec reduce_by_ln2(Vec x, Vec n) {
#if defined(__AVX512F__)
  return (Float)_mm512_fnmadd_ps((__m512)n.v, _mm512_set1_ps(0.693147180559945f), (__m512)x.v);
#elif defined(__FMA__) && defined(__AVX2__)
  return (Float)_mm256_fnmadd_ps((__m256)n.v, _mm256_set1_ps(0.693147180559945f), (__m256)x.v);
#elif defined(__aarch64__)
  return (Float)vfmsq_f32((float32x4_t)x.v, (float32x4_t)n.v, vdupq_n_f32(0.693147180559945f));
#else
  // ln2 in two parts, the first short enough for n times it to be exact.
  return multiply_add(n, Vec(2.12194440e-4f), multiply_add(n, Vec(-0.693359375f), x));
#endif
}

// exp(x) to 4.2e-7: x = n ln2 + r with |r| <= ln2/2, exp(r) by a polynomial (minimax, relative error 1.05e-7), times
// 2^n through the exponent bits. Above 88.38 the result is inf, below -87.3 it stops at 1.2e-38; NaN stays NaN. Every
// instruction counts: this is most of what an epilogue costs.
inline Vec exponential(Vec x) {
  x = minimum(Vec(89.0f), maximum(Vec(-87.33f), x));
  // Adding 1.5 * 2^23 leaves round(x / ln2) in the low bits of the sum.
  const Vec magic(12582912.0f);
  const Vec shifted = multiply_add(x, Vec(1.44269504088896341f), magic);
  const Vec n = shifted - magic;
  const Vec r = reduce_by_ln2(x, n);
  Vec p(8.312501013e-3f);
  p = multiply_add(p, r, Vec(4.189033061e-2f));
  p = multiply_add(p, r, Vec(1.666711569e-1f));
  p = multiply_add(p, r, Vec(4.999923110e-1f));
  p = multiply_add(p, r, Vec(1.0f));
  p = multiply_add(p, r, Vec(1.0f));
  const Uint power = ((Uint)shifted.v + 127u) << 23;
  return p * Vec((Float)power);
}

// 2^t likewise; inf from 128 on, not less than 2^-126.
inline Vec power_of_two(Vec t) {
  t = minimum(Vec(128.0f), maximum(Vec(-126.0f), t));
  const Vec magic(12582912.0f), shifted = t + magic, r = t - (shifted - magic);
  Vec p(1.330022587e-3f);
  p = multiply_add(p, r, Vec(9.669758596e-3f));
  p = multiply_add(p, r, Vec(5.550560402e-2f));
  p = multiply_add(p, r, Vec(2.402228128e-1f));
  p = multiply_add(p, r, Vec(6.931471806e-1f));
  p = multiply_add(p, r, Vec(1.0f));
  const Uint power = ((Uint)shifted.v + 127u) << 23;
  return p * Vec((Float)power);
}

inline float as_float(float x) { return x; }
inline float as_float(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline Vec load(const float* from) {
  Float value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Vec load(const BFloat16* from) {
  Half bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Float)(__builtin_convertvector(bits, Uint) << 16);
}

inline void store(float* to, Vec x) { std::memcpy(to, &x.v, sizeof x.v); }

// Round to nearest, ties to even; NaN stays NaN (the addition could carry its payload into infinity).
inline void store(BFloat16* to, Vec x) {
#if defined(__AVX512BF16__)
  // Subnormals become zero here. One instruction instead of nine: 2 ns less for a vector of 16.
  const Half half = (Half)_mm512_cvtneps_pbh((__m512)x.v);
#else
  const Uint bits = (Uint)x.v;
  const Uint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Uint quiet_nan = (bits >> 16) | 0x40u;
  const Half half = __builtin_convertvector(x.v == x.v ? rounded : quiet_nan, Half);
#endif
  std::memcpy(to, &half, sizeof half);
}

// Copies `count` < kLanes values in pieces of fixed size, one for every bit of `count`.
template <class T>
inline void copy_lanes(T* to, const T* from, int count) {
#pragma GCC unroll 4
  for (int piece = kLanes / 2; piece > 0; piece /= 2) {
    if ((count & piece) == 0) continue;
    std::memcpy(to, from, sizeof(T) * piece);
    to += piece;
    from += piece;
  }
}

// The first `count` lanes (0 < count < kLanes); the others load as zero. No masked stores: on Zen 4 one costs about as
// much as fifteen instructions.
template <class T>
inline Vec load_partial(const T* from, int count) {
  T lanes[kLanes] = {};
  copy_lanes(lanes, from, count);
  return load(lanes);
}
#if defined(__AVX512F__)
inline Vec load_partial(const float* from, int count) {
  return (Float)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
}
inline Vec load_partial(const BFloat16* from, int count) {
  const Half bits = (Half)_mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1), from);
  return (Float)(__builtin_convertvector(bits, Uint) << 16);
}
#endif
template <class T>
inline void store_partial(T* to, Vec x, int count) {
  T lanes[kLanes];
  store(lanes, x);
  copy_lanes(to, lanes, count);
}

template <class T>
inline Vec load_lanes(const T* from, int count) {
  return count == kLanes ? load(from) : load_partial(from, count);
}
template <class T>
inline void store_lanes(T* to, Vec x, int count) {
  if (count == kLanes) {
    store(to, x);
  } else {
    store_partial(to, x, count);
  }
}

template <Activation kAct>
struct KnownActivation {
  static constexpr Activation value = kAct;
};

// Calls f with the activation as a compile-time constant.
template <class F>
inline auto with_activation(Activation act, F f) {
  switch (act) {
    case Activation::kSilu:
      return f(KnownActivation<Activation::kSilu>());
    case Activation::kRelu:
      return f(KnownActivation<Activation::kRelu>());
    case Activation::kRelu6:
      return f(KnownActivation<Activation::kRelu6>());
    case Activation::kHardswish:
      return f(KnownActivation<Activation::kHardswish>());
    case Activation::kSigmoid:
      return f(KnownActivation<Activation::kSigmoid>());
    case Activation::kHardsigmoid:
      return f(KnownActivation<Activation::kHardsigmoid>());
    case Activation::kNone:
      break;
  }
  return f(KnownActivation<Activation::kNone>());
}

inline float sum_lanes(Vec x) {
  float total = 0.0f;
  for (int i = 0; i < kLanes; ++i) total += x.v[i];
  return total;
}

// How many of a vector's lanes hold elements of `all` from number `c` on.
inline int lanes_left(int64_t all, int64_t c) { return all - c < kLanes ? static_cast<int>(all - c) : kLanes; }

}  // namespace effnet::cpu::EFFNET_ISA
