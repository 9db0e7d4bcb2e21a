// Backward of the depthwise convolution: both gradients from one reading of dy, z and x. Half of a block's warps compute dx (dgrad),
// the other half the weight's gradient (wgrad), from the same activated rows. docs/kernels/depthwise_cuda.md has the numbers.
#pragma once

#include "depthwise_bwd_stencil.cuh"
#include "depthwise_traits.cuh"
#include "statistics.cuh"

namespace effnet::cuda {

// The roles leave their loops at different places of the program, so the barrier is one that may be met anywhere.
__device__ __forceinline__ void block_barrier() { __barrier_sync(0); }

// Vectors over a block's channels in shared memory, [kCoefficients, channels].
enum Coefficient { kScale, kShift, kGradB, kGradC, kGradMean, kInScale, kInShift, kInMean, kInInvstd, kCoefficients };
static_assert(kCoefficients == kBackwardVectors, "the planner counts them");

// What every thread of a block does whatever its role: where the block is, copies, activation.
template <class Traits>
struct BackwardBlock {
  using T = typename Traits::Element;
  static constexpr int kStride = Traits::kStride;
  static constexpr int kSlots = kBackwardStages + 1;

  const DepthwiseBackwardParams& p;
  const Tile tile;
  const int block_channels, first_channel;
  const Seat seat;
  const RowCopy<T> copy;
  int worker, workers;  // this thread's columns when a row is activated
  int first_step, rows, steps;
  int first_dz, first_x;     // columns at the left end of the shared rows
  int dz_offset, x_offset;  // from there to wgrad's first column of dz, and to dgrad's first column of x
  int dz_width, x_width;
  int first_image, images;
  T* raw;         // [kSlots][dy: dz_width | z: dz_width | x: kStride * x_width][channels]
  float* active;  // [2][dz: groups * dz_width | a: kStride * groups * x_width][32]
  float* vectors;
  float* sums;  // [2, strips, channels]
  float2 gate, pool_grad;  // of the image being activated, times grad_a

  __device__ BackwardBlock(const DepthwiseBackwardParams& p, int role)
      : p(p),
        tile(p.plan, blockIdx.x),
        block_channels(p.plan.groups * kGroupChannels),
        first_channel(tile.channel_block * block_channels),
        seat(p.plan, threadIdx.x % p.plan.threads_per_role(), first_channel, p.shape.channels),
        copy(threadIdx.x, blockDim.x, p.plan.groups, first_channel, p.shape.channels, p.vectors) {
    const DepthwiseDomain domain = backward_domain(p.shape);
    worker = role * p.plan.strips + seat.strip;
    workers = blockDim.x / p.plan.threads_per_role() * p.plan.strips;
    const int first = tile.band * p.plan.rows;
    rows = min(p.plan.rows, domain.rows - first);
    first_step = domain.first_row + first - Traits::kHalo;
    steps = rows + Traits::kHalo;
    const int tile_column = tile.column_tile * p.plan.strips * Traits::kDzColumns;
    first_dz = domain.first_column + tile_column - Traits::kHalo;
    first_x = tile_column * kStride - p.shape.left;
    dz_offset = Traits::kHalo - domain.first_column;
    x_offset = domain.first_column * kStride;
    dz_width = backward_dz_width(p.shape, p.plan);
    x_width = backward_x_width(p.shape, p.plan);
    first_image = tile.image_block * p.plan.images;
    images = min(p.plan.images, p.shape.batch - first_image);
    raw = reinterpret_cast<T*>(dynamic_shared());
    active = reinterpret_cast<float*>(raw + kSlots * raw_slot());
    vectors = active + 2 * active_buffer();
    sums = vectors + kCoefficients * block_channels;
  }

  __device__ int raw_x() const { return (p.z != nullptr ? 2 : 1) * dz_width * block_channels; }
  __device__ int raw_slot() const { return raw_x() + kStride * x_width * block_channels; }
  __device__ int active_x() const { return dz_width * block_channels; }
  __device__ int active_buffer() const { return active_x() + kStride * x_width * block_channels; }

  __device__ bool dz_exists(int step) const {
    return static_cast<unsigned>(first_step + step) < static_cast<unsigned>(p.shape.out_height);
  }
  // Row `part` of a step's rows of x; the halo's rows belong to another block.
  __device__ int x_row(int step, int part) const { return (first_step + step) * kStride + part - p.shape.top; }
  __device__ bool x_exists(int step, int part) const {
    return step >= Traits::kHalo && static_cast<unsigned>(x_row(step, part)) < static_cast<unsigned>(p.shape.height);
  }

  __device__ float2 vector(Coefficient which) const {
    return load_pair(vectors + which * block_channels + seat.raw());
  }

  __device__ void load_vectors() {
    const float* from[kCoefficients] = {p.scale,    p.shift,    p.grad_b,  p.grad_c,   p.grad_mean,
                                        p.in_scale, p.in_shift, p.in_mean, p.in_invstd};
#pragma unroll
    for (int i = 0; i < kCoefficients; ++i) {
      const float otherwise = i == kScale || i == kInScale || i == kInInvstd ? 1.0f : 0.0f;
      for (int c = threadIdx.x; c < block_channels; c += blockDim.x) {
        const bool exists = from[i] != nullptr && first_channel + c < p.shape.channels;
        vectors[i * block_channels + c] = exists ? from[i][first_channel + c] : otherwise;
      }
    }
    for (int i = threadIdx.x; i < 2 * p.plan.strips * block_channels; i += blockDim.x) sums[i] = 0.0f;
  }

  __device__ void fetch(const Cursor& at, int slot) const {
    if (at.image < images) {
      const DepthwiseShape& s = p.shape;
      const int64_t image = first_image + at.image;
      T* to = raw + slot * raw_slot();
      if (dz_exists(at.step)) {
        const int64_t row = (image * s.out_height + first_step + at.step) * s.out_width * s.channels + first_channel;
        copy(to, static_cast<const T*>(p.dy) + row, first_dz, dz_width, s.out_width, s.channels, block_channels);
        if (p.z != nullptr) {
          copy(to + dz_width * block_channels, static_cast<const T*>(p.z) + row, first_dz, dz_width, s.out_width,
               s.channels, block_channels);
        }
      }
#pragma unroll
      for (int part = 0; part < kStride; ++part) {
        if (!x_exists(at.step, part)) continue;
        const int64_t row = (image * s.height + x_row(at.step, part)) * s.width * s.channels + first_channel;
        copy(to + raw_x() + part * x_width * block_channels, static_cast<const T*>(p.x) + row, first_x, x_width, s.width,
             s.channels, block_channels);
      }
    }
    __pipeline_commit();
  }

  // Turns a raw step into dz and, for wgrad, into activated rows of x.
  __device__ void activate(const Cursor& at, int slot, int buffer) {
    if (at.image >= images) return;
    if (at.step == 0) load_image_vectors(first_image + at.image);
    const T* from = raw + slot * raw_slot() + seat.raw();
    float* to = active + buffer * active_buffer();
    if (dz_exists(at.step)) activate_dz(from, to + seat.active(dz_width));
    if (p.dweight == nullptr) return;
#pragma unroll
    for (int part = 0; part < kStride; ++part) {
      if (!x_exists(at.step, part)) continue;
      const int row = part * x_width * block_channels;
      activate_x(from + raw_x() + row, to + active_x() + row + seat.active(x_width));
    }
  }

 private:
  __device__ void load_image_vectors(int64_t image) {
    const int64_t at = image * p.shape.channels + seat.channel;
    const float2 a = load_vector(p.grad_a, seat.channel, seat.channels, 1.0f);
    gate = a * load_vector(p.gate, at, seat.channels, 1.0f);
    pool_grad = a * load_vector(p.pool_grad, at, seat.channels, 0.0f);
  }

  __device__ void activate_dz(const T* from, float* to) const {
    const float2 scale = vector(kScale), shift = vector(kShift);
    const float2 b = vector(kGradB), c = vector(kGradC), mean = vector(kGradMean);
    const int z = dz_width * block_channels;
    const bool has_z = p.z != nullptr;
    with_activation(p.act, [&](auto act) {
#pragma unroll 1
      for (int i = worker; i < dz_width; i += workers) {
        float2 value = pair(0.0f);
        if (static_cast<unsigned>(first_dz + i) < static_cast<unsigned>(p.shape.out_width)) {
          value = fma(load_pair(from + i * block_channels), gate, pool_grad);
          if (has_z) {
            const float2 raw_z = load_pair(from + z + i * block_channels);
            const float2 n = fma(raw_z, scale, shift);
            value = value * make_float2(activate_grad_fast<act()>(n.x), activate_grad_fast<act()>(n.y));
            value = value + fma(b, raw_z - mean, c);
          }
        }
        *reinterpret_cast<float2*>(to + i * kGroupChannels) = value;
      }
    });
  }

  __device__ void activate_x(const T* from, float* to) const {
    const float2 scale = vector(kInScale), shift = vector(kInShift);
    with_activation(p.in_act, [&](auto act) {
#pragma unroll 1
      for (int i = worker; i < x_width; i += workers) {
        float2 value = pair(0.0f);
        if (static_cast<unsigned>(first_x + i) < static_cast<unsigned>(p.shape.width)) {
          value = fma(load_pair(from + i * block_channels), scale, shift);
          value = make_float2(activate_fast<act()>(value.x), activate_fast<act()>(value.y));
        }
        *reinterpret_cast<float2*>(to + i * kGroupChannels) = value;
      }
    });
  }
};

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
    const float* row = active + block.seat.active(block.dz_width) + block.seat.strip * Traits::kDzColumns * kGroupChannels;
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
    with_activation(block.p.in_act, [&](auto act) {
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
    merge_strips(block, block.sums, block.block_channels, p.plan.strips * block.block_channels, 2, p.sums + 2 * partial);
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
