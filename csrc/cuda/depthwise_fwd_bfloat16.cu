#include "depthwise_fwd_launch.cuh"

template cudaError_t effnet::cuda::launch_depthwise_forward<__nv_bfloat16>(DepthwiseForwardParams, cudaStream_t);
