// The driver's modules, which is how Triton loads and launches what it has compiled.
#include "fake.h"

using fake::Kernel;
using Lock = std::lock_guard<std::recursive_mutex>;

namespace {

struct Module {
  int device;
};

Kernel* kernel_of(CUfunction function) { return reinterpret_cast<Kernel*>(function); }

}  // namespace

// Loading may allocate and synchronize, hence a capture forbids it.
FAKE_API CUresult cuModuleLoadData(CUmodule* module, const void*) {
  Lock lock(fake::mutex);
  if (fake::forbidden("cuModuleLoadData")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  fake::write("module\t%d", fake::current_device);
  return *module = reinterpret_cast<CUmodule>(new Module{fake::current_device}), CUDA_SUCCESS;
}
FAKE_API CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
  return cuModuleLoadData(module, image);
}
FAKE_API CUresult cuModuleLoad(CUmodule* module, const char*) { return cuModuleLoadData(module, nullptr); }
// Kernels stay: who launches one of an unloaded module must be told, not crash.
FAKE_API CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
FAKE_API CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  const int device = reinterpret_cast<Module*>(module)->device;
  Kernel* kernel = new Kernel{name, device, fake::kSharedByDefault};
  return *function = reinterpret_cast<CUfunction>(kernel), CUDA_SUCCESS;
}

FAKE_API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction) {
  *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : 0;
  return CUDA_SUCCESS;
}
FAKE_API CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
  Lock lock(fake::mutex);
  // A driver of these headers' version refuses attributes that came later, and Triton tries one.
  if (which >= CU_FUNC_ATTRIBUTE_MAX) return CUDA_ERROR_INVALID_VALUE;
  if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  if (static_cast<size_t>(value) > fake::shared_optin()) {
    fake::violation("%d bytes of shared memory asked for, the device has %zu: %s", value, fake::shared_optin(),
                    kernel_of(function)->name.c_str());
    return CUDA_ERROR_INVALID_VALUE;
  }
  return kernel_of(function)->shared_allowed = static_cast<size_t>(value), CUDA_SUCCESS;
}
FAKE_API CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
FAKE_API CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction, const CUlaunchConfig*) {
  return *clusters = 1, CUDA_SUCCESS;
}
FAKE_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  return *blocks = 2, CUDA_SUCCESS;
}

FAKE_API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void**, void**) {
  return fake::launch(kernel_of(function), dim3(config->gridDimX, config->gridDimY, config->gridDimZ),
                      dim3(config->blockDimX, config->blockDimY, config->blockDimZ), config->sharedMemBytes,
                      config->hStream, false);
}
FAKE_API CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                 unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared, CUstream stream,
                                 void**, void**) {
  return fake::launch(kernel_of(function), dim3(grid_x, grid_y, grid_z), dim3(block_x, block_y, block_z), shared,
                      stream, false);
}
