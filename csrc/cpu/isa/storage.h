// The types that tensors are stored in, within one instruction set.
#pragma once

#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "common/storage.h"
#include "cpu/isa/vec.h"

namespace effnet::cpu::EFFNET_ISA {

template <class T>
constexpr bool kIsHalf = std::is_same_v<T, BFloat16>;

// body(a value of the C++ type), for types that the CPU's kernels compute with; ops let in no others.
template <class Body>
inline decltype(auto) with_storage(StorageType type, Body&& body) {
  switch (type) {
    case StorageType::kFloat32:
      return body(float{});
    case StorageType::kBFloat16:
      return body(BFloat16{});
    case StorageType::kFloat16:
      break;
  }
  std::abort();
}

// Round to nearest, ties to even; NaN stays NaN.
inline BFloat16 to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {static_cast<uint16_t>(x == x ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : (bits >> 16) | 0x40u)};
}

}  // namespace effnet::cpu::EFFNET_ISA
