// What every thread of a backward block does whatever its role: where the block is, copies, activation.
#pragma once

#include "depthwise_traits.cuh"

namespace effnet::cuda {

// The roles leave their loops at different places of the program, so the barrier is one that may be met anywhere.
__device__ __forceinline__ void block_barrier() { __barrier_sync(0); }

// Vectors over a block's channels in shared memory, [kCoefficients, channels].
enum Coefficient { kScale, kShift, kGradB, kGradC, kGradMean, kInScale, kInShift, kInMean, kInInvstd, kCoefficients };
static_assert(kCoefficients == kBackwardVectors, "the planner counts them");

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
  int first_dz, first_x;    // columns at the left end of the shared rows
  int dz_offset, x_offset;  // from there to wgrad's first column of dz, and to dgrad's first column of x
  int dz_width, x_width;
  int first_image, images;
  T* raw;         // [kSlots][dy: dz_width | z: dz_width | x: kStride * x_width][channels]
  float* active;  // [2][dz: groups * dz_width | a: kStride * groups * x_width][32]
  float* vectors;
  float* sums;             // [2, strips, channels]
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

  __device__ int raw_x() const { return (p.incoming.z != nullptr ? 2 : 1) * dz_width * block_channels; }
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

  __device__ float2 vector(Coefficient which) const { return load_pair(vectors + which * block_channels + seat.raw()); }

  __device__ void load_vectors() {
    const DepthwiseIncoming& in = p.incoming;
    const Source& source = p.source;
    const float* from[kCoefficients] = {in.scale,     in.shift,     in.grad.b,        in.grad.c,    in.grad.mean,
                                        source.scale, source.shift, source.norm_mean, source.invstd};
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
        copy(to, static_cast<const T*>(p.incoming.dy) + row, first_dz, dz_width, s.out_width, s.channels,
             block_channels);
        if (p.incoming.z != nullptr) {
          copy(to + dz_width * block_channels, static_cast<const T*>(p.incoming.z) + row, first_dz, dz_width,
               s.out_width, s.channels, block_channels);
        }
      }
#pragma unroll
      for (int part = 0; part < kStride; ++part) {
        if (!x_exists(at.step, part)) continue;
        const int64_t row = (image * s.height + x_row(at.step, part)) * s.width * s.channels + first_channel;
        copy(to + raw_x() + part * x_width * block_channels, static_cast<const T*>(p.source.x) + row, first_x, x_width,
             s.width, s.channels, block_channels);
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
    const float2 a = load_vector(p.incoming.grad.a, seat.channel, seat.channels, 1.0f);
    gate = a * load_vector(p.incoming.gate, at, seat.channels, 1.0f);
    pool_grad = a * load_vector(p.incoming.pool_grad, at, seat.channels, 0.0f);
  }

  __device__ void activate_dz(const T* from, float* to) const {
    const float2 scale = vector(kScale), shift = vector(kShift);
    const float2 b = vector(kGradB), c = vector(kGradC), mean = vector(kGradMean);
    const int z = dz_width * block_channels;
    const bool has_z = p.incoming.z != nullptr;
    with_activation(p.incoming.act, [&](auto act) {
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
    with_activation(p.source.act, [&](auto act) {
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

}  // namespace effnet::cuda
