#include <cuda_runtime.h>

#include <algorithm>

#include "launch.cuh"
#include "squeeze_excite.h"
#include "squeeze_excite_bwd.cuh"
#include "squeeze_excite_fwd.cuh"
#include "storage.cuh"

namespace effnet::cuda {

namespace {

template <class Weight, int kImages>
cudaError_t launch_forward(const SqueezeExciteParams& p, const DeviceLimits& limits, cudaStream_t stream) {
  const int64_t shared = squeeze_excite_fwd_shared_bytes(p, kImages);
  if (shared > limits.shared_per_block) return cudaErrorInvalidConfiguration;
  return launch(squeeze_excite_fwd_kernel<Weight, kImages, 4>, (p.images + kImages - 1) / kImages,
                kSqueezeExciteForwardThreads, shared, stream, p);
}

template <class Weight>
cudaError_t launch_backward(const SqueezeExciteBackwardParams& p, const DeviceLimits& limits, cudaStream_t stream) {
  const int64_t shared = squeeze_excite_bwd_shared_bytes(p.forward);
  if (shared > limits.shared_per_block) return cudaErrorInvalidConfiguration;
  const auto kernel = squeeze_excite_bwd_kernel<Weight>;
  cudaError_t error = allow_shared_bytes(kernel, shared);
  int resident = 0;
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kSqueezeExciteThreads,
                                                          static_cast<size_t>(shared));
  }
  if (error != cudaSuccess) return error;
  const int64_t work = std::max(p.forward.images, squeeze_excite_bwd_tiles(p.forward));
  const int64_t blocks = std::min(work, static_cast<int64_t>(resident) * limits.multiprocessors);
  return launch(kernel, blocks, kSqueezeExciteThreads, shared, stream, p, true);
}

}  // namespace

cudaError_t squeeze_excite_forward(const SqueezeExciteParams& p, StorageType type, cudaStream_t stream) {
  DeviceLimits limits{};
  const cudaError_t error = device_limits(&limits);
  if (error != cudaSuccess) return error;
  return with_storage(type, [&](auto weight) {
    using Weight = decltype(weight);
    // Four images share the weights' way from the L2 cache once there is an image for every multiprocessor.
    const bool many =
        p.images >= limits.multiprocessors && squeeze_excite_fwd_shared_bytes(p, 4) <= limits.shared_per_block;
    return many ? launch_forward<Weight, 4>(p, limits, stream) : launch_forward<Weight, 1>(p, limits, stream);
  });
}

cudaError_t squeeze_excite_backward(const SqueezeExciteBackwardParams& p, StorageType type, cudaStream_t stream) {
  DeviceLimits limits{};
  const cudaError_t error = device_limits(&limits);
  if (error != cudaSuccess) return error;
  return with_storage(type, [&](auto weight) { return launch_backward<decltype(weight)>(p, limits, stream); });
}

}  // namespace effnet::cuda
