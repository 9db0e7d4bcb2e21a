// Backward of the depthwise convolution: both gradients from one reading of dy, z and x. Half of a block's warps
// compute dx (dgrad), the other half the weight's gradient (wgrad), from the same activated rows.
// docs/kernels/depthwise_cuda.md has the numbers.
#pragma once

#include "depthwise_bwd_block.cuh"
#include "depthwise_bwd_stencil.cuh"

namespace effnet::cuda {

template <class Traits>
struct DgradRole {
  using T = typename Traits::Element;
  const BackwardBlock<Traits>& block;
  DgradStencil<Traits> stencil;
  int first_column;  // of this thread's columns of dx; may be negative

  __device__ explicit DgradRole(const BackwardBlock<Traits>& block) : block(block) {
    load_weights<Traits>(stencil.weight, block.p.weight, block.seat);
#pragma unroll
    for (int slot = 0; slot < stencil.kRing; ++slot) {
#pragma unroll
      for (int j = 0; j < Traits::kXColumns; ++j) stencil.sum[slot][j] = pair(0.0f);
    }
    first_column = block.first_x + x_column();
  }

  // This thread's first column in a shared row of x.
  __device__ int x_column() const { return block.x_offset + block.seat.strip * Traits::kXColumns; }

  template <int kPhase>
  __device__ __forceinline__ void step(const Cursor& at, const float* active) {
    const float* row =
        active + block.seat.active(block.dz_width) + block.seat.strip * Traits::kDzColumns * kGroupChannels;
    if (block.dz_exists(at.step)) {
      stencil.template accumulate<kPhase>(row);
    } else {
      stencil.template skip<kPhase>();
    }
  }

  __device__ __forceinline__ void complete(const Cursor& at, int slot) {
    const DepthwiseShape& s = block.p.shape;
    if (block.seat.channels == 0) return;
#pragma unroll
    for (int part = 0; part < Traits::kStride; ++part) {
      if (!block.x_exists(at.step, part)) continue;
      const int64_t row = static_cast<int64_t>(block.first_image + at.image) * s.height + block.x_row(at.step, part);
      const int64_t offset = (row * s.width + first_column) * s.channels + block.seat.channel;
      if (block.p.sums != nullptr) {
        activation_backward(part, slot);
      } else if (block.p.residual != nullptr) {
        const T* residual = static_cast<const T*>(block.p.residual) + offset;
#pragma unroll
        for (int j = 0; j < Traits::kXColumns; ++j) {
          if (!inside(j)) continue;
          stencil.out[part][j] = stencil.out[part][j] + load_pair(residual + static_cast<int64_t>(j) * s.channels,
                                                                  block.seat.channels, block.p.pairs);
        }
      }
      T* dx = static_cast<T*>(block.p.dx) + offset;
#pragma unroll
      for (int j = 0; j < Traits::kXColumns; ++j) {
        if (!inside(j)) continue;
        store_pair(dx + static_cast<int64_t>(j) * s.channels, stencil.out[part][j], block.seat.channels, block.p.pairs);
      }
    }
  }

  template <int kRow>
  __device__ void deposit(float*) const {}

 private:
  __device__ bool inside(int j) const {
    return static_cast<unsigned>(first_column + j) < static_cast<unsigned>(block.p.shape.width);
  }

  // Multiplies by act'(in_affine(x)) and adds to the sums over g1 and g1 * x_hat.
  __device__ __forceinline__ void activation_backward(int part, int slot) {
    const T* from = block.raw + slot * block.raw_slot() + block.raw_x() +
                    (part * block.x_width + x_column()) * block.block_channels + block.seat.raw();
    float* own = block.sums + block.seat.strip * block.block_channels + block.seat.raw();
    float* own_hat = own + block.p.plan.strips * block.block_channels;
    const float2 scale = block.vector(kInScale), shift = block.vector(kInShift);
    const float2 mean = block.vector(kInMean), invstd = block.vector(kInInvstd);
    float2 sum = load_pair(own), sum_hat = load_pair(own_hat);
    with_activation(block.p.source.act, [&](auto act) {
#pragma unroll
      for (int j = 0; j < Traits::kXColumns; ++j) {
        if (!inside(j)) continue;
        const float2 x = load_pair(from + j * block.block_channels);
        const float2 n = fma(x, scale, shift);
        float2& g = stencil.out[part][j];
        g = g * make_float2(activate_grad_fast<act()>(n.x), activate_grad_fast<act()>(n.y));
        sum = sum + g;
        sum_hat = fma(g, (x - mean) * invstd, sum_hat);
      }
    });
    *reinterpret_cast<float2*>(own) = sum;
    *reinterpret_cast<float2*>(own_hat) = sum_hat;
  }
};

template <class Traits>
struct WgradRole {
  const BackwardBlock<Traits>& block;
  WgradStencil<Traits> stencil;

  __device__ explicit WgradRole(const BackwardBlock<Traits>& block) : block(block) {
#pragma unroll
    for (int tap = 0; tap < Traits::kTaps; ++tap) stencil.dweight[tap] = pair(0.0f);
#pragma unroll
    for (int slot = 0; slot < Traits::kLive; ++slot) {
#pragma unroll
      for (int j = 0; j < Traits::kDzColumns; ++j) stencil.dz[slot][j] = pair(0.0f);
    }
  }

  template <int kPhase>
  __device__ __forceinline__ void step(const Cursor& at, const float* active) {
    const int dz_column = block.dz_offset + block.seat.strip * Traits::kDzColumns;
    stencil.template take<kPhase>(active + block.seat.active(block.dz_width) + dz_column * kGroupChannels,
                                  !block.dz_exists(at.step));
    const float* row = active + block.active_x() + block.seat.active(block.x_width) +
                       block.seat.strip * Traits::kXColumns * kGroupChannels;
    if (block.x_exists(at.step, 0)) stencil.template accumulate<kPhase, 0>(row);
    if constexpr (Traits::kStride == 2) {
      if (block.x_exists(at.step, 1)) {
        stencil.template accumulate<kPhase, 1>(row + block.x_width * block.block_channels);
      }
    }
  }

  __device__ void complete(const Cursor&, int) {}

  // A row of the kernel's taps to shared memory [strips, k, channels].
  template <int kRow>
  __device__ void deposit(float* shared) const {
    float* to = shared + block.seat.strip * Traits::kKernel * block.block_channels + block.seat.raw();
#pragma unroll
    for (int kw = 0; kw < Traits::kKernel; ++kw) {
      *reinterpret_cast<float2*>(to + kw * block.block_channels) = stencil.dweight[kRow * Traits::kKernel + kw];
    }
  }
};

// Sums over strips: shared memory [strips, rows, channels] with these strides to `rows` rows of [all channels].
template <class Traits>
__device__ void merge_strips(const BackwardBlock<Traits>& block, const float* shared, int strip_stride, int row_stride,
                             int rows, float* to) {
  const int channels = min(block.block_channels, block.p.shape.channels - block.first_channel);
  for (int i = threadIdx.x; i < rows * channels; i += blockDim.x) {
    const int row = i / channels, c = i % channels;
    float sum = 0.0f;
    for (int strip = 0; strip < block.p.plan.strips; ++strip) {
      sum += shared[strip * strip_stride + row * row_stride + c];
    }
    to[static_cast<int64_t>(row) * block.p.shape.channels + block.first_channel + c] = sum;
  }
}

template <class Traits, class Role>
__device__ __forceinline__ void run_backward(BackwardBlock<Traits>& block, Role&& role) {
  constexpr int kStages = kBackwardStages;
  constexpr int kSlots = BackwardBlock<Traits>::kSlots;
  Cursor now(block.steps);
  for (int stage = 0; stage < kStages; ++stage) block.fetch(now.after(stage), stage);
  block.load_vectors();
  __pipeline_wait_prior(kStages - 1);
  block_barrier();
  block.activate(now, 0, 0);
  __pipeline_wait_prior(kStages - 2);
  block_barrier();

  int phase = 0;
  for (int count = 0; now.image < block.images; ++count) {
    block.activate(now.after(1), (count + 1) % kSlots, (count + 1) % 2);
    const float* active = block.active + count % 2 * block.active_buffer();
    with_phase<Traits::kBackwardPhases>(phase, [&](auto at) { role.template step<at()>(now, active); });
    role.complete(now, count % kSlots);
    // The slot before this one: dgrad has read its row of x a step ago.
    block.fetch(now.after(kStages), (count + kStages) % kSlots);
    __pipeline_wait_prior(kStages - 2);
    block_barrier();
    phase = now.step + 1 == now.steps || phase + 1 == Traits::kBackwardPhases ? 0 : phase + 1;
    now = now.after(1);
  }

  const DepthwiseBackwardParams& p = block.p;
  const int64_t partial = block.tile.partial_row(p.plan) * p.shape.channels;
  if (p.sums != nullptr) {
    merge_strips(block, block.sums, block.block_channels, p.plan.strips * block.block_channels, 2,
                 p.sums + 2 * partial);
  }
  if (p.dweight == nullptr) return;
  // The activated rows are no longer needed, and are larger than this.
  float* deposits = block.active;
  [&]<int... kRows>(std::integer_sequence<int, kRows...>) {
    ((role.template deposit<kRows>(deposits), block_barrier(),
      merge_strips(block, deposits, Traits::kKernel * block.block_channels, block.block_channels, Traits::kKernel,
                   p.dweight + Traits::kTaps * partial + kRows * Traits::kKernel * p.shape.channels),
      block_barrier()),
     ...);
  }(std::make_integer_sequence<int, Traits::kKernel>{});
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kBackwardThreads, Traits::kBackwardBlocks)
    depthwise_bwd_kernel(const __grid_constant__ DepthwiseBackwardParams p) {
  const int role = threadIdx.x / p.plan.threads_per_role();
  BackwardBlock<Traits> block(p, role);
  // The roles are whole warps, each with its own loop and registers.
  if (role == 0 && p.dx != nullptr) {
    run_backward(block, DgradRole<Traits>(block));
  } else {
    run_backward(block, WgradRole<Traits>(block));
  }
}

}  // namespace effnet::cuda
