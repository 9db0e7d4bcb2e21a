#include "depthwise_bwd_launch.cuh"

template cudaError_t effnet::cuda::launch_depthwise_backward<__nv_bfloat16>(DepthwiseBackwardParams, cudaStream_t);
