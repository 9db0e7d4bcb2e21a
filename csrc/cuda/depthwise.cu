#include "depthwise.h"
#include "launch.cuh"
#include "merge_rows.cuh"
#include "storage.cuh"

namespace effnet::cuda {

cudaError_t depthwise_forward(const DepthwiseForwardParams& p, StorageType type, cudaStream_t stream) {
  return with_storage(type, [&](auto stored) { return launch_depthwise_forward<decltype(stored)>(p, stream); });
}

cudaError_t depthwise_backward(const DepthwiseBackwardParams& p, StorageType type, cudaStream_t stream) {
  return with_storage(type, [&](auto stored) { return launch_depthwise_backward<decltype(stored)>(p, stream); });
}

cudaError_t merge_rows(const float* in, float* out, int64_t rows, int64_t taps, int64_t channels, cudaStream_t stream) {
  const MergeParams p{in, out, rows, taps, channels};
  return launch(merge_rows_kernel, (taps * channels + kMergeColumns - 1) / kMergeColumns, kMergeColumns * kMergeLanes,
                kMergeColumns * kMergeLanes * static_cast<int64_t>(sizeof(float)), stream, p);
}

}  // namespace effnet::cuda
