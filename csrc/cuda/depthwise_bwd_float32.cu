#include "depthwise_bwd_launch.cuh"

template cudaError_t effnet::cuda::launch_depthwise_backward<float>(DepthwiseBackwardParams, cudaStream_t);
