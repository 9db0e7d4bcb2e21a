// Devices, their properties and the driver's contexts.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fake.h"

namespace fake {

thread_local int current_device = 0;

namespace {

int number_from(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::atoi(text);
}

// CUDA C++ programming guide, technical specifications by compute capability; multiprocessors are the T4's, A100's,
// H100's.
struct Chip {
  int capability, multiprocessors, threads;
  size_t shared, shared_optin;
};
constexpr Chip kChips[] = {
    {75, 40, 1024, 64 << 10, 64 << 10}, {80, 108, 2048, 164 << 10, 163 << 10}, {90, 132, 2048, 228 << 10, 227 << 10}};

const Chip& chip() {
  static const Chip& found = [&]() -> const Chip& {
    const int wanted = number_from("FAKE_CUDA_CAPABILITY", 90);
    for (const Chip& one : kChips)
      if (one.capability == wanted) return one;
    std::fprintf(stderr, "fake CUDA: no device of compute capability %d\n", wanted);
    std::abort();
  }();
  return found;
}

}  // namespace

int devices() {
  static const int count = std::min(number_from("FAKE_CUDA_DEVICES", 1), kMaxDevices);
  return count;
}

int capability() { return chip().capability; }
size_t shared_optin() { return chip().shared_optin; }
int multiprocessors() { return chip().multiprocessors; }

int attribute(int which) {
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y:
      return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z:
      return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
      return 0x7fffffff;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z:
      return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
      return kSharedByDefault;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      return static_cast<int>(chip().shared_optin);
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      return static_cast<int>(chip().shared);
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
      return 65536;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      return chip().multiprocessors;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
      return chip().threads;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR:
      return 32;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
      return 1980000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
      return 2619000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
      return 5120;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
      return 50 << 20;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      return chip().capability / 10;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      return chip().capability % 10;
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
      return 1;
    default:
      return 0;
  }
}

}  // namespace fake

using fake::current_device;

FAKE_API cudaError_t cudaGetDeviceCount(int* count) { return *count = fake::devices(), cudaSuccess; }
FAKE_API cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
FAKE_API cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= fake::devices()) return cudaErrorInvalidDevice;
  return current_device = device, cudaSuccess;
}
FAKE_API cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDA_VERSION, cudaSuccess; }
FAKE_API cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
FAKE_API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  return *value = fake::attribute(which), cudaSuccess;
}

FAKE_API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  const auto at = [](CUdevice_attribute which) { return fake::attribute(which); };
  std::memset(p, 0, sizeof *p);
  std::snprintf(p->name, sizeof p->name, "fake sm_%d", fake::capability());
  p->uuid.bytes[0] = static_cast<char>(device + 1);
  p->totalGlobalMem = 80ull << 30;
  p->major = fake::capability() / 10;
  p->minor = fake::capability() % 10;
  p->warpSize = 32;
  p->multiProcessorCount = fake::multiprocessors();
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = at(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X);
  p->maxGridSize[1] = p->maxGridSize[2] = at(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y);
  p->maxThreadsPerMultiProcessor = at(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR);
  p->maxBlocksPerMultiProcessor = at(CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR);
  p->sharedMemPerBlock = fake::kSharedByDefault;
  p->sharedMemPerBlockOptin = fake::shared_optin();
  p->sharedMemPerMultiprocessor = at(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->l2CacheSize = at(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
  p->memoryBusWidth = at(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH);
  p->cooperativeLaunch = p->unifiedAddressing = p->concurrentKernels = p->streamPrioritiesSupported = 1;
  p->textureAlignment = 512;
  return cudaSuccess;
}

FAKE_API cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  return std::snprintf(text, static_cast<size_t>(length), "0000:%02x:00.0", device + 1), cudaSuccess;
}
FAKE_API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
FAKE_API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = -5;
  return cudaSuccess;
}
FAKE_API const char* cudaGetErrorName(cudaError_t) { return "fake"; }
FAKE_API const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorStreamCaptureUnsupported) return "operation not permitted when stream is capturing";
  if (error == cudaErrorStreamCaptureInvalidated) return "operation failed due to a previous error during capture";
  return "an error of the fake device; its log says which";
}
FAKE_API cudaError_t cudaGetLastError() { return cudaSuccess; }
FAKE_API cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

// Driver entry points that the runtime hands out are this library's own.
FAKE_API cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** found, unsigned, unsigned long long,
                                                      cudaDriverEntryPointQueryResult* result) {
  static void* self = [] {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&cudaGetDriverEntryPointByVersion), &info);
    return dlopen(info.dli_fname, RTLD_NOW);
  }();
  *found = dlsym(self, symbol);
  if (result != nullptr) *result = *found ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

FAKE_API CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
FAKE_API CUresult cuDriverGetVersion(int* version) { return *version = CUDA_VERSION, CUDA_SUCCESS; }
FAKE_API CUresult cuDeviceGetCount(int* count) { return *count = fake::devices(), CUDA_SUCCESS; }
FAKE_API CUresult cuDeviceGet(CUdevice* device, int index) { return *device = index, CUDA_SUCCESS; }
FAKE_API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  return *value = fake::attribute(which), CUDA_SUCCESS;
}

// A context is its device's number plus one, since null means none.
namespace {
CUcontext context_of(int device) { return reinterpret_cast<CUcontext>(static_cast<intptr_t>(device + 1)); }
int device_of(CUcontext context) { return static_cast<int>(reinterpret_cast<intptr_t>(context)) - 1; }
}  // namespace

FAKE_API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  if (flags != nullptr) *flags = 0;
  return *active = 1, CUDA_SUCCESS;
}
FAKE_API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  return *context = context_of(device), CUDA_SUCCESS;
}
FAKE_API CUresult cuCtxGetCurrent(CUcontext* context) { return *context = context_of(current_device), CUDA_SUCCESS; }
FAKE_API CUresult cuCtxSetCurrent(CUcontext context) {
  if (context != nullptr) current_device = device_of(context);
  return CUDA_SUCCESS;
}
FAKE_API CUresult cuCtxGetDevice(CUdevice* device) { return *device = current_device, CUDA_SUCCESS; }
FAKE_API CUresult cuGetErrorString(CUresult error, const char** text) {
  return *text = cudaGetErrorString(static_cast<cudaError_t>(error)), CUDA_SUCCESS;
}
FAKE_API CUresult cuGetErrorName(CUresult, const char** text) { return *text = "fake", CUDA_SUCCESS; }
