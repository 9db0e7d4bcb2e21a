// Device memory: host memory that is reserved and, until somebody writes to it, not there. It reads as zeros.
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "fake.h"

namespace fake {
namespace {

std::map<const char*, Allocation> allocations;

constexpr size_t kPage = 4096;

// Whole pages are given back and then read as zeros: what is only zeroed takes no memory.
void zero(char* to, size_t bytes) {
  char* first = to + (-reinterpret_cast<uintptr_t>(to) & (kPage - 1));
  char* last = to + bytes - (reinterpret_cast<uintptr_t>(to + bytes) & (kPage - 1));
  if (first >= last || allocation_of(to) == nullptr || madvise(first, last - first, MADV_DONTNEED) != 0) {
    std::memset(to, 0, bytes);
    return;
  }
  std::memset(to, 0, first - to);
  std::memset(last, 0, to + bytes - last);
}

// Page by page, because what was never written shall not be there after it was copied either.
void copy(char* to, const char* from, size_t bytes) {
  static const char zeros[kPage] = {};
  for (size_t done = 0; done < bytes; done += kPage) {
    const size_t part = std::min(kPage, bytes - done);
    if (part == kPage && std::memcmp(from + done, zeros, kPage) == 0)
      zero(to + done, part);
    else
      std::memcpy(to + done, from + done, part);
  }
}

}  // namespace

const Allocation* allocation_of(const void* pointer) {
  const char* address = static_cast<const char*>(pointer);
  auto found = allocations.upper_bound(address);
  if (found == allocations.begin()) return nullptr;
  --found;
  return address < found->first + found->second.bytes ? &found->second : nullptr;
}

}  // namespace fake

using fake::forbidden;
using fake::operation;

FAKE_API cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(fake::mutex);
  if (forbidden("cudaMalloc")) return cudaErrorStreamCaptureUnsupported;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return cudaErrorMemoryAllocation;
  fake::allocations[static_cast<char*>(memory)] = {bytes, fake::current_device};
  return *pointer = memory, cudaSuccess;
}

FAKE_API cudaError_t cudaFree(void* pointer) {
  std::lock_guard<std::recursive_mutex> lock(fake::mutex);
  if (pointer == nullptr) return cudaSuccess;
  if (forbidden("cudaFree")) return cudaErrorStreamCaptureUnsupported;
  auto found = fake::allocations.find(static_cast<char*>(pointer));
  if (found == fake::allocations.end()) {
    fake::violation("cudaFree of a pointer that is not allocated");
    return cudaErrorInvalidValue;
  }
  munmap(pointer, found->second.bytes);
  fake::allocations.erase(found);
  return cudaSuccess;
}

// Bytes that cudaMalloc has given out on a device and not got back.
FAKE_API size_t fake_allocated(int device) {
  std::lock_guard<std::recursive_mutex> lock(fake::mutex);
  size_t bytes = 0;
  for (const auto& [pointer, one] : fake::allocations)
    if (one.device == device) bytes += one.bytes;
  return bytes;
}

FAKE_API cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  std::lock_guard<std::recursive_mutex> lock(fake::mutex);
  if (forbidden("cudaHostAlloc")) return cudaErrorStreamCaptureUnsupported;
  return *pointer = aligned_alloc(4096, (bytes + 4095) & ~size_t{4095}), cudaSuccess;
}
FAKE_API cudaError_t cudaFreeHost(void* pointer) { return free(pointer), cudaSuccess; }
FAKE_API cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  *available = 79ull << 30;
  return *total = 80ull << 30, cudaSuccess;
}

FAKE_API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::lock_guard<std::recursive_mutex> lock(fake::mutex);
  if (forbidden("cudaMemcpy")) return cudaErrorStreamCaptureUnsupported;
  fake::write("sync\tcudaMemcpy");
  return fake::copy(static_cast<char*>(to), static_cast<const char*>(from), bytes), cudaSuccess;
}
FAKE_API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  operation("memcpy", stream);
  return fake::copy(static_cast<char*>(to), static_cast<const char*>(from), bytes), cudaSuccess;
}
FAKE_API cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  operation("memset", stream);
  if (value == 0)
    fake::zero(static_cast<char*>(to), bytes);
  else
    std::memset(to, value, bytes);
  return cudaSuccess;
}
FAKE_API cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

FAKE_API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  std::lock_guard<std::recursive_mutex> lock(fake::mutex);
  std::memset(attributes, 0, sizeof *attributes);
  const fake::Allocation* found = fake::allocation_of(pointer);
  attributes->type = found == nullptr ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice;
  if (found != nullptr) attributes->device = found->device;
  return attributes->devicePointer = const_cast<void*>(pointer), cudaSuccess;
}

// Triton asks for every tensor of a launch; the driver refuses what is not device memory.
FAKE_API CUresult cuPointerGetAttribute(void* value, CUpointer_attribute which, CUdeviceptr pointer) {
  std::lock_guard<std::recursive_mutex> lock(fake::mutex);
  const fake::Allocation* found = fake::allocation_of(reinterpret_cast<void*>(pointer));
  if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (which == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) {
    if (found->device != fake::current_device)
      fake::violation("a tensor of device %d in a launch on device %d", found->device, fake::current_device);
    return *static_cast<CUdeviceptr*>(value) = pointer, CUDA_SUCCESS;
  }
  return *static_cast<int*>(value) = 0, CUDA_SUCCESS;
}
