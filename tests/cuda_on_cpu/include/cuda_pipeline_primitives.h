// Asynchronous copies to shared memory. A copy is done when a wait asks for it, no sooner.
#pragma once

#include "cuda_on_cpu.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0) std::abort();
  cuda_on_cpu::self.open.push_back({to, from, bytes});
}

inline void __pipeline_commit() {
  cuda_on_cpu::self.committed.push_back(std::move(cuda_on_cpu::self.open));
  cuda_on_cpu::self.open.clear();
}

inline void __pipeline_wait_prior(size_t groups) {
  auto& committed = cuda_on_cpu::self.committed;
  while (committed.size() > groups) {
    for (const cuda_on_cpu::Copy& copy : committed.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    committed.erase(committed.begin());
  }
}
