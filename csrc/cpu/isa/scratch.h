// Memory that a thread keeps.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace effnet::cpu {

// `floats` floats, 64-byte aligned, of the calling thread alone. A thread keeps its scratch memory from call to call:
// fresh pages would cost more than a convolution.
inline float* thread_scratch(int64_t floats) {
  thread_local std::unique_ptr<float[], void (*)(float*)> memory(
      nullptr, [](float* owned) { ::operator delete[](owned, std::align_val_t{64}); });
  thread_local int64_t size = 0;
  if (size < floats) {
    memory.reset(
        static_cast<float*>(::operator new[](sizeof(float) * static_cast<size_t>(floats), std::align_val_t{64})));
    size = floats;
  }
  return memory.get();
}

}  // namespace effnet::cpu
