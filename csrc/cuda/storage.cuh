// The C++ types of what tensors are stored in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "../common/storage.h"

namespace effnet::cuda {

// body(a value of the C++ type), which launches something.
template <class Body>
cudaError_t with_storage(StorageType type, Body&& body) {
  switch (type) {
    case StorageType::kFloat32:
      return body(float{});
    case StorageType::kFloat16:
      return body(__half{});
    case StorageType::kBFloat16:
      return body(__nv_bfloat16{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace effnet::cuda
