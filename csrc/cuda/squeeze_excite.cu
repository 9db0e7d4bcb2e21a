#include "squeeze_excite_fwd.cuh"

namespace effnet::cuda {

namespace {

template <class Weight>
cudaError_t launch(const SqueezeExciteParams& p, cudaStream_t stream) {
  squeeze_excite_fwd_kernel<Weight><<<static_cast<unsigned>(p.images), kSqueezeExciteThreads,
                                      squeeze_excite_shared_bytes(p), stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t squeeze_excite_forward(const SqueezeExciteParams& p, WeightType weights, cudaStream_t stream) {
  switch (weights) {
    case WeightType::kFloat:
      return launch<float>(p, stream);
    case WeightType::kHalf:
      return launch<__half>(p, stream);
    case WeightType::kBFloat16:
      return launch<__nv_bfloat16>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace effnet::cuda
