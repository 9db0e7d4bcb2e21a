// From the facts of a call to a plan and the sizes of its partial results: shared by the registration and the tests on
// the CPU.
#pragma once

#include "depthwise.h"

namespace effnet::cuda {

inline PlannerRequest forward_request(const DepthwiseShape& shape, StorageType type) {
  return {shape, static_cast<int>(bytes_of(type)), false, 1, false};
}

inline PlannerRequest backward_request(const DepthwiseShape& shape, StorageType type, bool need_dx, bool need_dw,
                                       bool has_z) {
  return {shape, static_cast<int>(bytes_of(type)), true, need_dx && need_dw ? 2 : 1, has_z};
}

}  // namespace effnet::cuda
