// torch's parallel_for with threads that a sanitizer sees begin and end, preloaded in front of libtorch_cpu.
//
// PyTorch's own is OpenMP, whose waiting and waking ThreadSanitizer cannot see: everything would look like a race. As
// there, the calling thread takes the first part, each part runs in a thread of its own, and a call inside a part runs
// in that part's thread alone.
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "torch/csrc/stable/c/shim.h"

namespace {

thread_local bool inside = false;
thread_local uint32_t part_index = 0;

// What ran, for the report: a library that was not used would pass every test.
std::atomic<int64_t> regions{0}, parts{0};

// Python loads torch's libraries out of sight of what was loaded before: by name alone the function is not found.
uint32_t number_of_threads() {
  using Function = AOTITorchError (*)(uint32_t*);
  static const auto function =
      reinterpret_cast<Function>(dlsym(dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD), "torch_get_num_threads"));
  uint32_t threads = 1;
  function(&threads);
  return threads;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int64_t effnet_sanitized_regions() { return regions; }
__attribute__((visibility("default"))) int64_t effnet_sanitized_parts() { return parts; }

__attribute__((visibility("default"))) AOTITorchError torch_get_thread_idx(uint32_t* index) {
  *index = part_index;
  return 0;
}

__attribute__((visibility("default"))) AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain,
                                                                         ParallelFunc body, void* context) {
  const int64_t items = end - begin;
  if (items <= 0) return 0;
  int64_t count = inside ? 1
                         : std::min<int64_t>(number_of_threads(),
                                             (items + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1));
  const int64_t chunk = (items + count - 1) / count;
  count = (items + chunk - 1) / chunk;
  regions.fetch_add(1);
  parts.fetch_add(count);
  const auto run = [&](int64_t i) {
    const bool outer = inside;
    const uint32_t before = part_index;
    if (count > 1) inside = true, part_index = static_cast<uint32_t>(i);
    body(begin + i * chunk, std::min(end, begin + (i + 1) * chunk), context);
    inside = outer;
    part_index = before;
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < count; ++i) others.emplace_back(run, i);
  run(0);
  for (std::thread& thread : others) thread.join();
  return 0;
}

}  // extern "C"

// Faults on purpose, by which scripts/sanitize.py sees that its sanitizer looks.
extern "C" __attribute__((visibility("default"))) int64_t effnet_sanitized_fault(int64_t kind) {
  std::vector<int64_t> values(8, kind);
  if (kind == 0) return *(values.data() + values.size());
  if (kind == 1) return static_cast<int32_t>(values[1]) << (31 + static_cast<int32_t>(values[2]));
  const auto count = [&] {
    for (int i = 0; i < 1000; ++i) values[3] = values[3] + 1;
  };
  std::thread other(count);
  count();
  other.join();
  return values[3];
}
