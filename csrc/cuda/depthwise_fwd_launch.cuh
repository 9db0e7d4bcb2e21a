#pragma once

#include "depthwise_fwd.cuh"
#include "launch.cuh"

namespace effnet::cuda {

template <class T>
cudaError_t launch_depthwise_forward(DepthwiseForwardParams p, cudaStream_t stream) {
  p.vectors = p.shape.channels % (16 / sizeof(T)) == 0 && aligned(p.x, 16);
  p.pairs = p.shape.channels % 2 == 0 && aligned(p.y, 2 * sizeof(T));
  return with_depthwise_traits<T>(p.shape.kernel, p.shape.stride, [&](auto traits) {
    return launch(depthwise_fwd_kernel<decltype(traits)>, p.plan.blocks(), p.plan.threads_per_role(),
                  forward_shared_bytes(p.shape, p.plan, sizeof(T)), stream, p);
  });
}

}  // namespace effnet::cuda
