// A CUDA runtime and driver without a GPU: device memory is host memory, every launch is checked, logged and computes
// nothing. Preloaded into a process, it lets PyTorch's CUDA build, Triton's JIT and _cuda.so do all that the host does.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#define FAKE_API extern "C" __attribute__((visibility("default")))

namespace fake {

constexpr int kMaxDevices = 8;
constexpr size_t kSharedByDefault = 48 << 10;

// What stream operations record while a graph is captured. `invalid`: a forbidden call has spoiled it, as on a GPU.
struct Capture {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool invalid = false;
  std::vector<std::string> nodes;
};

struct Stream {
  int device = 0;
  int number = 0;  // 0 is the device's default stream
  Capture* capture = nullptr;
};

struct Event {
  Capture* capture = nullptr;
};

struct Kernel {
  std::string name;
  int device = -1;  // of the module it came from; -1: of a library, whose kernels are there on every device
  size_t shared_allowed = kSharedByDefault;
};

struct Allocation {
  size_t bytes = 0;
  int device = 0;
};

// One lock for everything: a call is short, and the order of the log is the order of the calls.
extern std::recursive_mutex mutex;
extern thread_local int current_device;

int devices();
int capability();  // 90 is sm_90
size_t shared_optin();
int multiprocessors();
int attribute(int which);

// The log: a line a call, fields separated by tabs, written only while logging is on.
bool logging();
__attribute__((format(printf, 1, 2))) void write(const char* format, ...);
// What would fail, or be wrong, on a GPU; always written.
__attribute__((format(printf, 1, 2))) void violation(const char* format, ...);

Stream* stream_of(void* handle);
// Whether a capture forbids this thread to make `call`; if so, the capture is spoiled and the violation logged.
bool forbidden(const char* call);
// A copy or fill on a stream: logged, and recorded where the stream is captured.
void operation(const char* name, void* stream);

const Allocation* allocation_of(const void* pointer);
CUresult launch(Kernel* kernel, dim3 grid, dim3 block, size_t shared, void* stream, bool cooperative);

}  // namespace fake
