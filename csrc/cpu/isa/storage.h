// The types that tensors are stored in, within one instruction set.
#pragma once

#include <cstring>
#include <type_traits>

#include "cpu/isa/vec.h"

namespace effnet::cpu::EFFNET_ISA {

template <class T>
constexpr bool kIsHalf = std::is_same_v<T, BFloat16>;

// Round to nearest, ties to even; NaN stays NaN.
inline BFloat16 to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {static_cast<uint16_t>(x == x ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : (bits >> 16) | 0x40u)};
}

}  // namespace effnet::cpu::EFFNET_ISA
