// Runs CUDA kernels on the CPU: one operating-system thread per CUDA thread, barriers for __syncthreads, so that the
// sanitizers see what the kernels do. Blocks run one after another, except in cooperative launches. Slow and exact: for
// tests on small shapes.
#pragma once

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

using Barrier = std::barrier<>;
constexpr unsigned kWarpThreads = 32;

struct Warp {
  explicit Warp(unsigned threads) : barrier(threads) {}
  Barrier barrier;
  float slots[kWarpThreads];
};

// What the threads of a block share. The memory has exactly the size the launch asked for, so that AddressSanitizer
// knows its end.
struct Block {
  Block(unsigned threads, size_t shared_bytes) : barrier(threads), shared_bytes(shared_bytes) {
    shared = static_cast<unsigned char*>(std::aligned_alloc(16, (shared_bytes + 15) / 16 * 16 + 16));
    if (shared_bytes % 16 == 0) {
      std::free(shared);
      shared = shared_bytes == 0 ? nullptr : static_cast<unsigned char*>(std::aligned_alloc(16, shared_bytes));
    }
    for (unsigned first = 0; first < threads; first += kWarpThreads) {
      warps.push_back(std::make_unique<Warp>(std::min(threads - first, kWarpThreads)));
    }
  }
  ~Block() { std::free(shared); }
  // A block finds what the last one left; NaN is the least forgiving.
  void poison() {
    if (shared != nullptr) std::memset(shared, 0xff, shared_bytes);
  }

  Barrier barrier;
  size_t shared_bytes;
  unsigned char* shared;
  std::vector<std::unique_ptr<Warp>> warps;
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Thread {
  Block* block = nullptr;
  Barrier* grid = nullptr;
  // Asynchronous copies happen as late as they are allowed to, so that a missing wait is seen.
  std::vector<std::vector<Copy>> committed;
  std::vector<Copy> open;
};

inline thread_local Thread self;

inline void run_thread(const std::function<void()>& kernel) {
  kernel();
  for (const auto& group : self.committed) {
    for (const Copy& copy : group) std::memcpy(copy.to, copy.from, copy.bytes);
  }
  self.committed.clear();
}

inline void run(const std::function<void()>& kernel, dim3 grid, dim3 threads, size_t shared_bytes, bool cooperative) {
  const unsigned blocks = grid.x;
  const unsigned concurrent = cooperative ? blocks : 1;
  std::vector<std::unique_ptr<Block>> memory;
  for (unsigned i = 0; i < concurrent; ++i) memory.push_back(std::make_unique<Block>(threads.x, shared_bytes));
  Barrier whole(concurrent * threads.x);
  std::vector<std::thread> workers;
  for (unsigned place = 0; place < concurrent; ++place) {
    for (unsigned t = 0; t < threads.x; ++t) {
      workers.emplace_back([&, place, t] {
        self = Thread{};
        threadIdx = dim3(t, 0, 0);
        blockDim = threads;
        gridDim = grid;
        self.block = memory[place].get();
        self.grid = cooperative ? &whole : nullptr;
        for (unsigned block = place; block < blocks; block += concurrent) {
          if (t == 0) self.block->poison();
          self.block->barrier.arrive_and_wait();
          blockIdx = dim3(block, 0, 0);
          run_thread(kernel);
          self.block->barrier.arrive_and_wait();
        }
      });
    }
  }
  for (std::thread& worker : workers) worker.join();
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::self.block->barrier.arrive_and_wait(); }
inline void __barrier_sync(unsigned) { __syncthreads(); }

inline cuda_on_cpu::Warp& cuda_on_cpu_warp() {
  return *cuda_on_cpu::self.block->warps[threadIdx.x / cuda_on_cpu::kWarpThreads];
}

inline float __shfl_xor_sync(unsigned, float value, int offset) {
  cuda_on_cpu::Warp& warp = cuda_on_cpu_warp();
  const unsigned lane = threadIdx.x % cuda_on_cpu::kWarpThreads;
  warp.slots[lane] = value;
  warp.barrier.arrive_and_wait();
  const float other = warp.slots[lane ^ static_cast<unsigned>(offset)];
  warp.barrier.arrive_and_wait();
  return other;
}

inline void __syncwarp(unsigned = 0xffffffffu) { cuda_on_cpu_warp().barrier.arrive_and_wait(); }

inline unsigned char* cuda_on_cpu_dynamic_shared() { return cuda_on_cpu::self.block->shared; }
