// An MBConv block in inference as one call: everything that follows from the shapes is prepared once, as plain data in
// a CPU tensor, and a call only looks whether the tensors are still those, allocates, and launches four kernels. The
// two 1x1 convolutions are kernels that Triton compiled; how they take their arguments is part of the data.
#pragma once

#include <cstdint>

#include "compiled.h"
#include "depthwise.h"
#include "squeeze_excite.h"

namespace effnet::cuda {

// The block's tensors in the order in which they are passed, then what a call allocates.
enum Slot : int32_t {
  kX,
  kExpand,  // its BatchNorm's weight, bias, mean and var follow; likewise below
  kDepthwise = kExpand + 5,
  kProject = kDepthwise + 5,
  kW1 = kProject + 5,
  kB1,
  kW2,
  kB2,
  kInputs,
  kExpanded = kInputs,  // [N, C, H, W]
  kActivated,           // [N, C, Ho, Wo], the depthwise convolution's output
  kGate,
  kY,
  kSlots,
};

// What a tensor must be for the prepared launches to be right for it.
struct TensorFacts {
  int32_t present;
  int32_t dtype;
  int64_t rank;
  int64_t sizes[4];
};

struct PreparedBlock {
  uint64_t size;  // of this struct
  int32_t device;
  int32_t expands, squeezes;
  TensorFacts tensors[kInputs];
  CompiledKernel expand, project;
  DepthwiseForwardParams depthwise;
  SqueezeExciteParams squeeze_excite;
  StorageType type, squeeze_excite_type;
  int64_t out_channels;
  // Offsets in the one allocation for everything in between, and its size.
  int64_t activated_at, pooled_at, gate_at, workspace_bytes;
};

}  // namespace effnet::cuda
