#pragma once

#include "depthwise_bwd.cuh"
#include "launch.cuh"

namespace effnet::cuda {

template <class T>
cudaError_t launch_depthwise_backward(DepthwiseBackwardParams p, cudaStream_t stream) {
  const bool whole = p.shape.channels % (16 / sizeof(T)) == 0;
  p.vectors = whole && aligned(p.incoming.dy, 16) && aligned(p.source.x, 16) &&
              (p.incoming.z == nullptr || aligned(p.incoming.z, 16));
  p.pairs = p.shape.channels % 2 == 0 && aligned(p.dx, 2 * sizeof(T)) && aligned(p.residual, 2 * sizeof(T));
  const int roles = (p.dx != nullptr) + (p.dweight != nullptr);
  return with_depthwise_traits<T>(p.shape.kernel, p.shape.stride, [&](auto traits) {
    return launch(depthwise_bwd_kernel<decltype(traits)>, p.plan.blocks(), roles * p.plan.threads_per_role(),
                  backward_shared_bytes(p.shape, p.plan, sizeof(T), p.incoming.z != nullptr), stream, p);
  });
}

}  // namespace effnet::cuda
