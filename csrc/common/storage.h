// The types that tensors are stored in. A new one is an enumerator here, a case of each switch over them (none has a
// default, so the compiler names what is missing: cpu/isa/storage.h, cuda/storage.cuh) and what computes with it.
#pragma once

#include <cstdint>

namespace effnet {

enum class StorageType : int32_t { kFloat32, kFloat16, kBFloat16 };
constexpr int32_t kStorageTypes = 3;

constexpr int64_t bytes_of(StorageType type) {
  switch (type) {
    case StorageType::kFloat32:
      return 4;
    case StorageType::kFloat16:
    case StorageType::kBFloat16:
      return 2;
  }
  return 0;
}

}  // namespace effnet
