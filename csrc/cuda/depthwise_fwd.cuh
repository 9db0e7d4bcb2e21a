// Depthwise convolution with fused prologue and epilogue. docs/kernels/depthwise_cuda.md has the reasoning and the
// numbers.
#pragma once

#include "depthwise_traits.cuh"
#include "statistics.cuh"

namespace effnet::cuda {

template <class Traits>
struct ForwardThread {
  static constexpr int kKernel = Traits::kKernel;
  static constexpr int kStride = Traits::kStride;
  static constexpr int kLive = Traits::kLive;
  static constexpr int kColumns = Traits::kColumns;

  float2 weight[Traits::kTaps];
  float2 start;                 // of every accumulator
  float2 sum[kLive][kColumns];  // outputs whose rows are not all in yet; slot = output row modulo kLive
  float2 out[kColumns];         // the output row that became complete

  // Adds an input row to the outputs it touches. With kPhase = row modulo kForwardPhases, output (row - kh) / kStride
  // is in a slot known at compile time; kh = 0 opens a slot, kh = k - 1 completes one.
  template <int kPhase>
  __device__ __forceinline__ void accumulate(const float* row) {
    float2 in[Traits::kInputColumns];
#pragma unroll
    for (int i = 0; i < Traits::kInputColumns; ++i) in[i] = load_pair(row + i * kGroupChannels);
#pragma unroll
    for (int kh = 0; kh < kKernel; ++kh) {
      if ((kPhase + kKernel - kh) % kStride != kKernel % kStride) continue;
      constexpr_slot<kPhase>(kh, [&](int slot) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          float2 value = kh == 0 ? start : sum[slot][j];
#pragma unroll
          for (int kw = 0; kw < kKernel; ++kw) value = fma(weight[kh * kKernel + kw], in[j * kStride + kw], value);
          (kh == kKernel - 1 ? out : sum[slot])[j] = value;
        }
      });
    }
  }

  // The same for a row of zeros.
  template <int kPhase>
  __device__ __forceinline__ void skip() {
#pragma unroll
    for (int kh = 0; kh < kKernel; kh += kKernel - 1) {
      if ((kPhase + kKernel - kh) % kStride != kKernel % kStride) continue;
      constexpr_slot<kPhase>(kh, [&](int slot) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          if (kh == 0) {
            sum[slot][j] = start;
          } else {
            out[j] = sum[slot][j];
          }
        }
      });
    }
  }

 private:
  template <int kPhase, class Body>
  static __device__ __forceinline__ void constexpr_slot(int kh, Body&& body) {
    body((kPhase - kh + kStride * kLive) / kStride % kLive);
  }
};

// Shared memory: raw ring [kForwardStages, width, channels] of T, activated rows [2, groups, width, 32], sums [4,
// strips, channels].
template <class Traits>
__global__ void __launch_bounds__(kForwardMaxThreads, Traits::kForwardBlocks)
    depthwise_fwd_kernel(const __grid_constant__ DepthwiseForwardParams p) {
  using T = typename Traits::Element;
  constexpr int kStages = kForwardStages;

  const DepthwiseShape& s = p.shape;
  const Tile tile(p.plan, blockIdx.x);
  const int block_channels = p.plan.groups * kGroupChannels;
  const int first_channel = tile.channel_block * block_channels;
  const Seat seat(p.plan, threadIdx.x, first_channel, s.channels);
  const RowCopy<T> copy(threadIdx.x, blockDim.x, p.plan.groups, first_channel, s.channels, p.vectors);

  const int out_row = tile.band * p.plan.rows;
  const int rows = min(p.plan.rows, s.out_height - out_row);
  const int out_column = (tile.column_tile * p.plan.strips + seat.strip) * Traits::kColumns;
  const int tile_columns = s.out_width - tile.column_tile * p.plan.strips * Traits::kColumns;
  const int columns = strip_columns(tile_columns, seat.strip, Traits::kColumns);
  const int first_row = out_row * Traits::kStride - s.top;
  const int first_column = tile.column_tile * p.plan.strips * Traits::kColumns * Traits::kStride - s.left;
  const int first_image = tile.image_block * p.plan.images;
  const int images = min(p.plan.images, s.batch - first_image);

  const int width = forward_width(s, p.plan);
  const int raw_row = width * block_channels;
  T* raw = reinterpret_cast<T*>(dynamic_shared());
  float* active = reinterpret_cast<float*>(raw + kStages * raw_row);
  // Each thread's own sums of its two channels, kept here because the stencil needs the registers.
  const int sums_row = p.plan.strips * block_channels;
  float* sums = active + 2 * raw_row;
  float* own = sums + seat.strip * block_channels + seat.raw();
  for (int i = 0; i < 4; ++i) *reinterpret_cast<float2*>(own + i * sums_row) = pair(0.0f);

  const int64_t row_elements = static_cast<int64_t>(s.width) * s.channels;
  const T* x = static_cast<const T*>(p.x) + first_channel;

  // An input row that the image does not have is a row of zeros.
  const auto exists = [&](int step) {
    return static_cast<unsigned>(first_row + step) < static_cast<unsigned>(s.height);
  };
  const auto fetch = [&](const Cursor& at, int slot) {
    if (at.image < images && exists(at.step)) {
      const T* row = x + (static_cast<int64_t>(first_image + at.image) * s.height + first_row + at.step) * row_elements;
      copy(raw + slot * raw_row, row, first_column, width, s.width, s.channels, block_channels);
    }
    __pipeline_commit();
  };

  const float2 in_scale = load_vector(p.in_scale, seat.channel, seat.channels, 1.0f);
  const float2 in_shift = load_vector(p.in_shift, seat.channel, seat.channels, 0.0f);
  const auto activate_row = [&](const Cursor& at, int slot, float* to) {
    if (at.image >= images || !exists(at.step)) return;
    const T* from = raw + slot * raw_row + seat.raw();
    to += seat.active(width);
    with_activation(p.in_act, [&](auto act) {
#pragma unroll 4
      for (int i = seat.strip; i < width; i += p.plan.strips) {
        float2 value = pair(0.0f);
        if (static_cast<unsigned>(first_column + i) < static_cast<unsigned>(s.width)) {
          value = fma(load_pair(from + i * block_channels), in_scale, in_shift);
          value = make_float2(activate_fast<act()>(value.x), activate_fast<act()>(value.y));
        }
        *reinterpret_cast<float2*>(to + i * kGroupChannels) = value;
      }
    });
  };

  Cursor now((rows - 1) * Traits::kStride + Traits::kKernel);
  for (int stage = 0; stage < kStages; ++stage) fetch(now.after(stage), stage);

  // The weights' latency hides behind the first rows'.
  ForwardThread<Traits> thread;
  if (!std::is_same_v<T, float> && p.wide_weight) {
    load_weights<Traits, float>(thread.weight, p.weight, seat);
  } else {
    load_weights<Traits>(thread.weight, p.weight, seat);
  }
  float2 scale = load_vector(p.scale, seat.channel, seat.channels, 1.0f);
  thread.start = load_vector(p.shift, seat.channel, seat.channels, 0.0f);
  if (p.var.data != nullptr) {
    const float2 mean = load_vector(p.mean, seat.channel, seat.channels, 0.0f);
    const float2 var = load_vector(p.var, seat.channel, seat.channels, 1.0f);
    // Not rsqrtf, whose instruction is approximate.
    scale = scale * make_float2(1.0f / sqrtf(var.x + p.eps), 1.0f / sqrtf(var.y + p.eps));
    thread.start = thread.start - mean * scale;
  }
#pragma unroll
  for (int tap = 0; tap < Traits::kTaps; ++tap) thread.weight[tap] = thread.weight[tap] * scale;
#pragma unroll
  for (int slot = 0; slot < Traits::kLive; ++slot) {
#pragma unroll
    for (int j = 0; j < Traits::kColumns; ++j) thread.sum[slot][j] = pair(0.0f);
  }

  __pipeline_wait_prior(kStages - 1);
  __syncthreads();
  activate_row(now, 0, active);
  __pipeline_wait_prior(kStages - 2);
  __syncthreads();

  T* y = static_cast<T*>(p.y) + seat.channel;
  const float pool_scale = 1.0f / (static_cast<float>(s.out_height) * static_cast<float>(s.out_width));
  int phase = 0;
  for (int count = 0; now.image < images; ++count) {
    activate_row(now.after(1), (count + 1) % kStages, active + (count + 1) % 2 * raw_row);

    const float* row = active + count % 2 * raw_row + seat.active(width) +
                       seat.strip * Traits::kColumns * Traits::kStride * kGroupChannels;
    const bool zeros = !exists(now.step);
    with_phase<Traits::kForwardPhases>(phase, [&](auto at) {
      if (zeros) {
        thread.template skip<at()>();
      } else {
        thread.template accumulate<at()>(row);
      }
    });

    const int complete = now.step - (Traits::kKernel - 1);
    if (complete >= 0 && complete % Traits::kStride == 0 && columns > 0 && seat.channels > 0) {
      with_activation(p.act, [&](auto act) {
#pragma unroll
        for (int j = 0; j < Traits::kColumns; ++j) {
          thread.out[j] = make_float2(activate_fast<act()>(thread.out[j].x), activate_fast<act()>(thread.out[j].y));
        }
      });
      const int64_t row_index =
          static_cast<int64_t>(first_image + now.image) * s.out_height + out_row + complete / Traits::kStride;
      T* to = y + (row_index * s.out_width + out_column) * s.channels;
#pragma unroll
      for (int j = 0; j < Traits::kColumns; ++j) {
        if (j < columns) store_pair(to + static_cast<int64_t>(j) * s.channels, thread.out[j], seat.channels, p.pairs);
      }
      if (p.pooled != nullptr) add_to_sum(own, thread.out, columns);
      if (p.stats != nullptr) {
#pragma unroll
        for (int j = 0; j < Traits::kColumns; ++j) thread.out[j] = round_pair<T>(thread.out[j]);
        add_to_moments(own + sums_row, sums_row, thread.out, columns, complete == 0 && now.image == 0);
      }
    }

    const bool image_done = now.step + 1 == now.steps;
    // Everyone activated this slot's row a step ago.
    fetch(now.after(kStages), count % kStages);
    __pipeline_wait_prior(kStages - 2);
    __syncthreads();
    if (image_done && p.pooled != nullptr) {
      const int64_t row_of_means = static_cast<int64_t>(first_image + now.image) * p.plan.tiles() + tile.tile(p.plan);
      float* to = p.pooled + row_of_means * s.channels + first_channel;
      for (int c = threadIdx.x; c < min(block_channels, s.channels - first_channel); c += blockDim.x) {
        float sum = 0.0f;
        for (int strip = 0; strip < p.plan.strips; ++strip) {
          sum += sums[strip * block_channels + c];
          sums[strip * block_channels + c] = 0.0f;
        }
        to[c] = sum * pool_scale;
      }
    }
    phase = image_done || phase + 1 == Traits::kForwardPhases ? 0 : phase + 1;
    now = now.after(1);
  }

  if (p.stats != nullptr) {
    merge_moments<Traits::kColumns>(sums + sums_row, sums_row, p.plan.strips, block_channels, tile_columns,
                                    rows * images, min(block_channels, s.channels - first_channel), s.channels,
                                    p.stats + tile.partial_row(p.plan) * 3 * s.channels + first_channel);
  }
}

}  // namespace effnet::cuda
