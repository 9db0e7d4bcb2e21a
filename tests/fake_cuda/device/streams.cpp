// Streams, events and the capture of graphs, with the calls that a capture forbids.
#include <set>
#include <utility>

#include "fake.h"

namespace fake {
namespace {

// "Potentially unsafe" calls are forbidden to a thread unless it has asked for relaxed mode (CUDA driver API,
// cuThreadExchangeStreamCaptureMode).
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
std::set<Capture*> captures;
std::set<Stream*> created;

void synchronized(const char* call) { write("sync\t%s", call); }

}  // namespace

Stream* stream_of(void* handle) {
  static Stream defaults[kMaxDevices];
  // 1 and 2 are the names of the legacy and the per-thread default stream.
  if (reinterpret_cast<uintptr_t>(handle) > 2) return static_cast<Stream*>(handle);
  defaults[current_device].device = current_device;
  return &defaults[current_device];
}

bool forbidden(const char* call) {
  if (captures.empty() || thread_mode == cudaStreamCaptureModeRelaxed) return false;
  bool found = false;
  for (Capture* capture : captures)
    if (capture->mode != cudaStreamCaptureModeRelaxed) found = capture->invalid = true;
  if (found) violation("%s while a graph is captured", call);
  return found;
}

void operation(const char* name, void* handle) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  Stream* stream = stream_of(handle);
  if (stream->capture != nullptr) stream->capture->nodes.push_back(name);
  write("operation\t%s\t%d\t%d\t%d", name, stream->device, stream->number, stream->capture != nullptr);
}

}  // namespace fake

using fake::Capture;
using fake::Event;
using fake::forbidden;
using fake::Stream;
using fake::stream_of;
using Lock = std::lock_guard<std::recursive_mutex>;

FAKE_API cudaError_t cudaStreamCreate(cudaStream_t* handle) {
  Lock lock(fake::mutex);
  static int number = 0;
  Stream* stream = new Stream{fake::current_device, ++number, nullptr};
  fake::created.insert(stream);
  return *handle = reinterpret_cast<cudaStream_t>(stream), cudaSuccess;
}
FAKE_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned) { return cudaStreamCreate(handle); }
FAKE_API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned, int) {
  return cudaStreamCreate(handle);
}
FAKE_API cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
FAKE_API cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }

FAKE_API cudaError_t cudaDeviceSynchronize() {
  Lock lock(fake::mutex);
  fake::synchronized("cudaDeviceSynchronize");
  return forbidden("cudaDeviceSynchronize") ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
FAKE_API cudaError_t cudaStreamSynchronize(cudaStream_t) {
  Lock lock(fake::mutex);
  fake::synchronized("cudaStreamSynchronize");
  return forbidden("cudaStreamSynchronize") ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
FAKE_API cudaError_t cudaEventSynchronize(cudaEvent_t) {
  Lock lock(fake::mutex);
  fake::synchronized("cudaEventSynchronize");
  return forbidden("cudaEventSynchronize") ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
FAKE_API cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }

FAKE_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* handle, unsigned) {
  return *handle = reinterpret_cast<cudaEvent_t>(new Event), cudaSuccess;
}
FAKE_API cudaError_t cudaEventCreate(cudaEvent_t* handle) { return cudaEventCreateWithFlags(handle, 0); }
FAKE_API cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  return delete reinterpret_cast<Event*>(handle), cudaSuccess;
}
FAKE_API cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
FAKE_API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Lock lock(fake::mutex);
  reinterpret_cast<Event*>(event)->capture = stream_of(stream)->capture;
  return cudaSuccess;
}
FAKE_API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
// A stream that waits for an event of a captured stream becomes part of the capture.
FAKE_API cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  Lock lock(fake::mutex);
  Capture* capture = reinterpret_cast<Event*>(event)->capture;
  if (fake::captures.count(capture) != 0) stream_of(handle)->capture = capture;
  return cudaSuccess;
}
FAKE_API cudaError_t cudaEventElapsedTime(float* time, cudaEvent_t, cudaEvent_t) { return *time = 1, cudaSuccess; }

FAKE_API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return std::swap(*mode, fake::thread_mode), cudaSuccess;
}
FAKE_API CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  const auto before = static_cast<CUstreamCaptureMode>(fake::thread_mode);
  fake::thread_mode = static_cast<cudaStreamCaptureMode>(*mode);
  return *mode = before, CUDA_SUCCESS;
}

FAKE_API cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  Lock lock(fake::mutex);
  Stream* stream = stream_of(handle);
  if (stream->number == 0 || stream->capture != nullptr) return cudaErrorStreamCaptureUnsupported;
  stream->capture = new Capture{mode, false, {}};
  fake::captures.insert(stream->capture);
  return cudaSuccess;
}

FAKE_API cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  Lock lock(fake::mutex);
  Capture* capture = stream_of(handle)->capture;
  *graph = nullptr;
  if (capture == nullptr) return cudaErrorIllegalState;
  for (Stream* stream : fake::created)
    if (stream->capture == capture) stream->capture = nullptr;
  fake::captures.erase(capture);
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  fake::write("graph\t%zu", capture->nodes.size());
  return *graph = reinterpret_cast<cudaGraph_t>(capture), cudaSuccess;
}

namespace {
cudaStreamCaptureStatus status_of(const Stream* stream) {
  if (stream->capture == nullptr) return cudaStreamCaptureStatusNone;
  return stream->capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}
}  // namespace

FAKE_API cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return *status = status_of(stream_of(handle)), cudaSuccess;
}
FAKE_API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                              unsigned long long* id, cudaGraph_t* graph, const cudaGraphNode_t** from,
                                              const cudaGraphEdgeData** edges, size_t* count) {
  Stream* stream = stream_of(handle);
  *status = status_of(stream);
  if (id != nullptr) *id = reinterpret_cast<uintptr_t>(stream->capture);
  if (graph != nullptr) *graph = reinterpret_cast<cudaGraph_t>(stream->capture);
  if (from != nullptr) *from = nullptr;
  if (edges != nullptr) *edges = nullptr;
  if (count != nullptr) *count = 0;
  return cudaSuccess;
}
FAKE_API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  return *count = reinterpret_cast<Capture*>(graph)->nodes.size(), cudaSuccess;
}
FAKE_API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return *executable = reinterpret_cast<cudaGraphExec_t>(graph), cudaSuccess;
}
FAKE_API cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
  Stream* stream = stream_of(handle);
  fake::write("replay\t%zu\t%d\t%d", reinterpret_cast<Capture*>(executable)->nodes.size(), stream->device,
              stream->number);
  return cudaSuccess;
}
FAKE_API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
FAKE_API cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
