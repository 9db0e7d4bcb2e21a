// From a program and the shape of its input to steps and a workspace.
#pragma once

#include <cstddef>
#include <deque>
#include <vector>

#include "cpu/engine/network.h"
#include "cpu/engine/program.h"

namespace effnet::cpu {

// The caller's images and where results go. Null pointers will do for planning alone.
struct NetworkCall {
  const void* x;
  StorageType x_dtype;
  int64_t batch, height, width;
  int64_t x_strides[4];
  const char* weights;
  char* workspace;
  float* out;
  int64_t threads;
};

struct NetworkPlan {
  std::vector<Step> steps;
  std::deque<std::vector<Segment>> segments;  // what the steps point to
  int64_t workspace_bytes = 0;
  int64_t scratch_floats = 0;
  int64_t weight_bytes = 0;        // up to the end of the last weight that is read
  std::vector<int64_t> out_shape;  // [N, classes], [N, C] or [N, H, W, C]
  // The first layer whose input is smaller than its kernel, or -1; its name for the message.
  const char* too_small = nullptr;
};

NetworkPlan plan_network(const Program& program, const NetworkCall& call);

}  // namespace effnet::cpu
