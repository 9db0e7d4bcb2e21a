#include "depthwise.h"
#include "launch.cuh"
#include "merge_rows.cuh"

namespace effnet::cuda {

cudaError_t depthwise_forward(const DepthwiseForwardParams& p, StorageType type, cudaStream_t stream) {
  switch (type) {
    case StorageType::kFloat32:
      return launch_depthwise_forward<float>(p, stream);
    case StorageType::kFloat16:
      return launch_depthwise_forward<__half>(p, stream);
    case StorageType::kBFloat16:
      return launch_depthwise_forward<__nv_bfloat16>(p, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t depthwise_backward(const DepthwiseBackwardParams& p, StorageType type, cudaStream_t stream) {
  switch (type) {
    case StorageType::kFloat32:
      return launch_depthwise_backward<float>(p, stream);
    case StorageType::kFloat16:
      return launch_depthwise_backward<__half>(p, stream);
    case StorageType::kBFloat16:
      return launch_depthwise_backward<__nv_bfloat16>(p, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t merge_rows(const float* in, float* out, int64_t rows, int64_t taps, int64_t channels, cudaStream_t stream) {
  const MergeParams p{in, out, rows, taps, channels};
  return launch(merge_rows_kernel, (taps * channels + kMergeColumns - 1) / kMergeColumns, kMergeColumns * kMergeLanes,
                kMergeColumns * kMergeLanes * static_cast<int64_t>(sizeof(float)), stream, p);
}

}  // namespace effnet::cuda
