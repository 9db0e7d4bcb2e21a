// Launches of the runtime and of the driver: checked as the driver would, logged, counted, and nothing is computed.
#include <cxxabi.h>

#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "fake.h"

namespace fake {
namespace {

std::unordered_map<const void*, Kernel> library_kernels;
long count = 0;

// Thread numbers in order of first launch: the main thread, autograd's, a test's own.
int thread_number() {
  static int next = 0;
  thread_local const int number = next++;
  return number;
}

std::string demangled(const char* name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string result = status == 0 ? text : name;
  std::free(text);
  return result;
}

// The reason for which the driver would refuse the launch, or null.
const char* refusal(const Kernel* kernel, dim3 grid, dim3 block, size_t shared, const Stream* stream,
                    bool cooperative) {
  const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return "grid out of range";
  if (threads == 0 || threads > 1024 || block.z > 64) return "block out of range";
  if (shared > kernel->shared_allowed) return "shared memory that was not opted in";
  if (stream->device != current_device) return "a stream of another device";
  if (kernel->device != -1 && kernel->device != current_device) return "a module of another device";
  // Two blocks a multiprocessor, as the occupancy calls below say.
  if (cooperative && static_cast<size_t>(grid.x) * grid.y * grid.z > 2u * static_cast<size_t>(multiprocessors()))
    return "a cooperative grid that is not resident at once";
  return nullptr;
}

}  // namespace

CUresult launch(Kernel* kernel, dim3 grid, dim3 block, size_t shared, void* handle, bool cooperative) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  ++count;
  Stream* stream = stream_of(handle);
  if (const char* reason = refusal(kernel, grid, block, shared, stream, cooperative)) {
    violation("%s: grid %u,%u,%u block %u,%u,%u, %zu bytes of shared memory, device %d: %s", reason, grid.x, grid.y,
              grid.z, block.x, block.y, block.z, shared, current_device, demangled(kernel->name.c_str()).c_str());
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (stream->capture != nullptr) stream->capture->nodes.push_back(kernel->name);
  if (logging())
    write("launch\t%u,%u,%u\t%u,%u,%u\t%zu\t%d\t%d\t%d\t%d\t%d\t%d\t%s", grid.x, grid.y, grid.z, block.x, block.y,
          block.z, shared, stream->device, stream->number, stream->capture != nullptr, cooperative,
          kernel->device != -1, thread_number(), demangled(kernel->name.c_str()).c_str());
  return CUDA_SUCCESS;
}

namespace {

cudaError_t launch_library(const void* function, dim3 grid, dim3 block, size_t shared, void* stream, bool cooperative) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  return static_cast<cudaError_t>(launch(&library_kernels[function], grid, block, shared, stream, cooperative));
}

}  // namespace

}  // namespace fake

using fake::Kernel;
using fake::launch_library;
using Lock = std::lock_guard<std::recursive_mutex>;

FAKE_API long fake_launches() { return fake::count; }

// One launch with a name, for what stands in for cuDNN's and cuBLAS's kernels (baseline.py).
FAKE_API void fake_launch(const char* name, void* stream) {
  Kernel kernel{name, -1, fake::kSharedByDefault};
  fake::launch(&kernel, dim3(1), dim3(128), 0, stream, false);
}

// What nvcc's host code calls: kernels register when a library is loaded, <<<>>> pushes its configuration.
FAKE_API void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
FAKE_API void __cudaRegisterFatBinaryEnd(void**) {}
FAKE_API void __cudaUnregisterFatBinary(void**) {}
FAKE_API char __cudaInitModule(void**) { return 0; }
FAKE_API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
FAKE_API void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*,
                                     dim3*, int*) {
  Lock lock(fake::mutex);
  fake::library_kernels[function].name = name;
}
FAKE_API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  return *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function)), cudaSuccess;
}

namespace {
struct Configuration {
  dim3 grid, block;
  size_t shared;
  void* stream;
};
thread_local std::vector<Configuration> pushed;
}  // namespace

FAKE_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  return pushed.push_back({grid, block, shared, stream}), 0;
}
FAKE_API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const Configuration last = pushed.back();
  pushed.pop_back();
  *grid = last.grid, *block = last.block, *shared = last.shared;
  return *static_cast<void**>(stream) = last.stream, cudaSuccess;
}

FAKE_API cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**, size_t shared,
                                      cudaStream_t stream) {
  return launch_library(function, grid, block, shared, stream, false);
}
FAKE_API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t shared,
                                        cudaStream_t stream) {
  return launch_library(kernel, grid, block, shared, stream, false);
}
FAKE_API cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void**, size_t shared,
                                                 cudaStream_t stream) {
  return launch_library(function, grid, block, shared, stream, true);
}
FAKE_API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void**) {
  bool cooperative = false;
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeCooperative) cooperative |= config->attrs[i].val.cooperative != 0;
  return launch_library(function, config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream,
                        cooperative);
}
FAKE_API cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute which, int value) {
  Lock lock(fake::mutex);
  if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (static_cast<size_t>(value) > fake::shared_optin()) {
    fake::violation("%d bytes of shared memory asked for, the device has %zu", value, fake::shared_optin());
    return cudaErrorInvalidValue;
  }
  return fake::library_kernels[function].shared_allowed = static_cast<size_t>(value), cudaSuccess;
}
FAKE_API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  std::memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 64;
  return attributes->binaryVersion = attributes->ptxVersion = fake::capability(), cudaSuccess;
}
FAKE_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  return *blocks = 2, cudaSuccess;
}
FAKE_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                            unsigned) {
  return *blocks = 2, cudaSuccess;
}
