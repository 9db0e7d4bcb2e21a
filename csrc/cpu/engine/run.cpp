#include "cpu/engine/run.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "cpu/gemm/multiply_amx.h"
#include "cpu/isa/scratch.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace effnet::cpu {
namespace {

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
#if defined(EFFNET_HAVE_AMX)
  amx::release();
#endif
}

}  // namespace

void run_plan(const NetworkPlan& plan, int64_t threads, int64_t* times) {
  const auto run_item = EFFNET_SELECT_ISA(network_item);
  Progress progress(static_cast<int64_t>(plan.steps.size()), std::max<int64_t>(threads, 1));
  torch::stable::parallel_for(0, progress.threads(), 1, [&](int64_t begin, int64_t) {
    if (begin == 0 && times != nullptr) times[0] = nanoseconds();
    run_steps(plan, run_item, progress, begin, thread_scratch(plan.scratch_floats), begin == 0 ? times : nullptr);
  });
}

}  // namespace effnet::cpu
