#include "depthwise_fwd_launch.cuh"

template cudaError_t effnet::cuda::launch_depthwise_forward<__half>(DepthwiseForwardParams, cudaStream_t);
