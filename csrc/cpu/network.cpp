// The op that runs a compiled network: checks, planning, and one parallel region for all steps.
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "checks.h"
#include "network_plan.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace effnet::cpu {
namespace {

constexpr int64_t kNetworkNumbers = sizeof(NetworkRecord) / sizeof(int64_t);
constexpr int64_t kBlockNumbers = sizeof(BlockRecord) / sizeof(int64_t);

struct Records {
  const NetworkRecord* network;
  const BlockRecord* blocks;
};

Records check_program(const char* op, const Tensor& program) {
  EFFNET_CHECK(program.is_cpu() && program.scalar_type() == ScalarType::Long && program.dim() == 1 &&
                   program.is_contiguous() && program.numel() >= kNetworkNumbers,
               op, "program", "what compile_network made: int64 on the CPU", to_text(program));
  const auto* numbers = static_cast<const int64_t*>(program.const_data_ptr());
  const auto* network = reinterpret_cast<const NetworkRecord*>(numbers);
  EFFNET_CHECK(network->blocks >= 0 && network->blocks < 4096 &&
                   program.numel() == kNetworkNumbers + network->blocks * kBlockNumbers,
               op, "program",
               std::to_string(kNetworkNumbers) + " numbers and " + std::to_string(kBlockNumbers) + " for each block",
               program.numel());
  return {network, reinterpret_cast<const BlockRecord*>(numbers + kNetworkNumbers)};
}

// A counter on a cache line of its own.
struct alignas(64) Counter {
  std::atomic<int64_t> value{0};
};

// What the threads share about one call. Of each step every thread has a range of items to begin with, the same part of
// the image in each layer, so that it mostly reads what it has written; when it is done it helps the others. (Reading
// another core's cache is several times slower than one's own, most of all between groups of cores.)
class Progress {
 public:
  Progress(int64_t steps, int64_t threads) : threads_(threads), counters_(new Counter[steps * (threads + 1)]) {}

  int64_t threads() const { return threads_; }
  std::atomic<int64_t>& taken(int64_t step, int64_t thread) { return counters_[step * (threads_ + 1) + thread].value; }
  std::atomic<int64_t>& done(int64_t step) { return counters_[step * (threads_ + 1) + threads_].value; }

 private:
  int64_t threads_;
  std::unique_ptr<Counter[]> counters_;
};

inline void pause_a_moment() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t nanoseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

// All threads go through all steps: each takes items of the step until none is left and waits until those that others
// took are done. Nobody waits for a thread that has not begun, so it works with any number of threads that really run,
// one included. A step costs a fraction of a microsecond where a parallel region costs several.
void run_steps(const NetworkPlan& plan, NetworkItem* run_item, Progress& progress, int64_t thread, float* scratch,
               int64_t* times) {
  ThreadState state{scratch, nullptr, 0};
  const int64_t threads = progress.threads();
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    std::atomic<int64_t>& done = progress.done(i);
    int64_t computed = 0;
    for (int64_t k = 0; k < threads; ++k) {
      const int64_t owner = (thread + k) % threads;
      const int64_t first = owner * step.items / threads, end = (owner + 1) * step.items / threads;
      std::atomic<int64_t>& taken = progress.taken(i, owner);
      if (first + taken.load(std::memory_order_relaxed) >= end) continue;
      for (int64_t item; (item = first + taken.fetch_add(1, std::memory_order_relaxed)) < end; ++computed) {
        run_item(step, item, state);
      }
    }
    if (computed > 0) done.fetch_add(computed, std::memory_order_acq_rel);
    for (int64_t waits = 0; done.load(std::memory_order_acquire) < step.items; ++waits) {
      // Another program may have the processor that the thread waited for runs on.
      if (waits < 20000) {
        pause_a_moment();
      } else {
        std::this_thread::yield();
      }
    }
    if (times != nullptr) times[i + 1] = nanoseconds() | static_cast<int64_t>(step.kind) << 56;
  }
}

NetworkCall describe(int64_t batch, int64_t height, int64_t width) {
  NetworkCall call{};
  call.batch = batch, call.height = height, call.width = width;
  call.threads = static_cast<int64_t>(torch::stable::get_num_threads());
  return call;
}

// [bytes of workspace, steps, sizes of the output...] for x [batch, Cin, height, width] and the threads of now.
std::vector<int64_t> network_plan(const Tensor& program, int64_t batch, int64_t height, int64_t width) {
  constexpr const char* op = "network_plan";
  const Records records = check_program(op, program);
  EFFNET_CHECK(batch > 0 && height > 0 && width > 0, op, "x", "at least one image and one pixel",
               std::to_string(batch) + " of " + std::to_string(height) + " x " + std::to_string(width));
  const NetworkPlan plan = plan_network(*records.network, records.blocks, describe(batch, height, width));
  EFFNET_CHECK(
      plan.too_small == nullptr, op, "x",
      std::string("an image that leaves the ") + (plan.too_small == nullptr ? "" : plan.too_small) + " a pixel",
      std::to_string(height) + " x " + std::to_string(width));
  std::vector<int64_t> result{plan.workspace_bytes, static_cast<int64_t>(plan.steps.size())};
  result.insert(result.end(), plan.out_shape.begin(), plan.out_shape.end());
  return result;
}

void network_run(const Tensor& x, const Tensor& program, const Tensor& weights, Tensor workspace, Tensor out,
                 std::optional<Tensor> times) {
  constexpr const char* op = "network_run";
  const Records records = check_program(op, program);
  EFFNET_CHECK(x.dim() == 4 && x.size(1) == records.network->stem.in, op, "x",
               "[N, " + std::to_string(records.network->stem.in) + ", H, W]", to_text(x));
  NetworkCall call = describe(x.size(0), x.size(2), x.size(3));
  call.x_dtype = check_dtype(x, op, "x");
  call.x = x.const_data_ptr();
  for (int i = 0; i < 4; ++i) call.x_strides[i] = x.stride(i);
  EFFNET_CHECK(weights.is_cpu() && weights.is_contiguous() && weights.scalar_type() == ScalarType::Byte, op, "weights",
               "bytes on the CPU", to_text(weights));
  call.weights = static_cast<const char*>(weights.const_data_ptr());
  call.workspace = static_cast<char*>(workspace.mutable_data_ptr());
  call.out = static_cast<float*>(out.mutable_data_ptr());
  const NetworkPlan plan = plan_network(*records.network, records.blocks, call);
  EFFNET_CHECK(plan.too_small == nullptr, op, "x", "a larger image", to_text(x));
  EFFNET_CHECK(workspace.is_cpu() && workspace.is_contiguous() && workspace.scalar_type() == ScalarType::Byte &&
                   workspace.numel() >= plan.workspace_bytes,
               op, "workspace", std::to_string(plan.workspace_bytes) + " bytes on the CPU", to_text(workspace));
  EFFNET_CHECK(weights.numel() >= plan.weight_bytes, op, "weights", std::to_string(plan.weight_bytes) + " bytes",
               weights.numel());
  EFFNET_CHECK(out.is_cpu() && out.is_contiguous() && out.scalar_type() == ScalarType::Float, op, "out",
               "a dense float32 CPU tensor", to_text(out));
  check_shape(out, plan.out_shape, op, "out");
  int64_t* clock = nullptr;
  if (times.has_value()) {
    check_shape(*times, {static_cast<int64_t>(plan.steps.size()) + 1}, op, "times");
    EFFNET_CHECK(times->scalar_type() == ScalarType::Long, op, "times", "int64", "another dtype");
    clock = static_cast<int64_t*>(times->mutable_data_ptr());
  }
  const auto run_item = EFFNET_SELECT_ISA(network_item);
  Progress progress(static_cast<int64_t>(plan.steps.size()), std::max<int64_t>(call.threads, 1));
  torch::stable::parallel_for(0, progress.threads(), 1, [&](int64_t begin, int64_t) {
    if (begin == 0 && clock != nullptr) clock[0] = nanoseconds();
    run_steps(plan, run_item, progress, begin, thread_scratch(plan.scratch_floats), begin == 0 ? clock : nullptr);
  });
}

}  // namespace
}  // namespace effnet::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CPU, m) {
  m.impl("network_plan", TORCH_BOX(&effnet::cpu::network_plan));
  m.impl("network_run", TORCH_BOX(&effnet::cpu::network_run));
}
