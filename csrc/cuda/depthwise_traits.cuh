// Compile-time facts of the depthwise kernels, and the pieces the forward and the backward share.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>
#include <utility>

#include "depthwise.h"
#include "numeric.cuh"

namespace effnet::cuda {

// Code for compute capability 10 and up needs a few registers more than the 96 that a fifth block leaves.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kForwardBlocks3x3 = 4;
#else
constexpr int kForwardBlocks3x3 = 5;
#endif

template <class T, int kKernelSize, int kStrideSize>
struct DepthwiseTraits {
  using Element = T;
  static constexpr int kKernel = kKernelSize;
  static constexpr int kStride = kStrideSize;
  static constexpr int kTaps = kKernel * kKernel;
  // Rows that one row of the other side touches: outputs of an input row, rows of dz of a row of x.
  static constexpr int kLive = (kKernel + kStride - 1) / kStride;
  // After this many steps a register ring is where it started.
  static constexpr int kForwardPhases = kStride * kLive;
  static constexpr int kBackwardPhases = kLive;
  static constexpr int kColumns = columns_per_thread(kKernel);
  static constexpr int kInputColumns = (kColumns - 1) * kStride + kKernel;
  // Backward: columns of dz and of x a thread owns, and how far dz reaches to the left of them.
  static constexpr int kDzColumns = kColumns / kStride;
  static constexpr int kXColumns = kColumns;
  static constexpr int kHalo = (kKernel - 1) / kStride;
  static constexpr int kInputWidth = (kDzColumns - 1) * kStride + kKernel;
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  // Blocks a multiprocessor must have room for: as many as leave every template its registers without spilling.
  static constexpr int kForwardBlocks = kKernel == 3 ? kForwardBlocks3x3 : kKernel == 5 ? 3 : 2;
  static constexpr int kBackwardThreads = backward_max_threads(kKernel, kStride);
  static constexpr int kBackwardBlocks = 2;

  static_assert(kKernel == 3 || kKernel == 5 || kKernel == 7, "kernel sizes of the MBConv family");
  static_assert(kStride == 1 || kStride == 2, "strides of the MBConv family");
  static_assert(kColumns % kStride == 0, "a strip of x must be whole columns of dz");
  static_assert(kGroupChannels % kVector == 0, "a group must be whole 16-byte pieces");
  static_assert((kForwardStages & (kForwardStages - 1)) == 0 && (kBackwardStages & (kBackwardStages + 1)) == 0,
                "slots of the raw rings are counted by a mask");
  static_assert(kForwardStages >= 3 && kBackwardStages >= 3, "one row being read, one complete, one in flight");
};

// Where a thread works in the stencil: two channels, a strip of columns.
struct Seat {
  int lane, strip, group;
  int channel;   // first of the two
  int channels;  // how many of the two exist: 0, 1 or 2

  __device__ Seat(const DepthwisePlan& plan, int thread, int first_channel, int all_channels) {
    lane = thread % kLanes;
    strip = thread / kLanes % plan.strips;
    group = thread / kLanes / plan.strips;
    channel = first_channel + group * kGroupChannels + 2 * lane;
    channels = min(max(all_channels - channel, 0), 2);
  }

  // Offset of the two channels in a raw pixel [groups * 32].
  __device__ int raw() const { return group * kGroupChannels + 2 * lane; }
  // Offset of the two channels in activated rows [groups, columns, 32].
  __device__ int active(int width) const { return group * width * kGroupChannels + 2 * lane; }
};

// Which tile of the work a block has.
struct Tile {
  int channel_block, column_tile, band;
  int image_block;

  __device__ Tile(const DepthwisePlan& plan, int64_t block) {
    // Channel blocks are neighbours in time: they share lines of memory.
    channel_block = static_cast<int>(block % plan.channel_blocks);
    block /= plan.channel_blocks;
    column_tile = static_cast<int>(block % plan.column_tiles);
    block /= plan.column_tiles;
    band = static_cast<int>(block % plan.bands);
    image_block = static_cast<int>(block / plan.bands);
  }

  __device__ int tile(const DepthwisePlan& plan) const { return band * plan.column_tiles + column_tile; }
  __device__ int64_t partial_row(const DepthwisePlan& plan) const {
    return static_cast<int64_t>(image_block) * plan.tiles() + tile(plan);
  }
};

// A place in the sequence of all rows of a block's images. Whoever works ahead of the stencil derives its place from
// the stencil's: registers are dearer than these few instructions.
struct Cursor {
  int steps;  // rows an image
  int step = 0;
  int image = 0;

  __device__ explicit Cursor(int steps) : steps(steps) {}
  __device__ Cursor after(int count) const {
    Cursor later = *this;
    later.step += count;
    while (later.step >= steps) {
      later.step -= steps;
      ++later.image;
    }
    return later;
  }
};

// Copies the columns [first, first + width) of a row that lie in [0, columns) into a raw row of shared memory, 16 bytes
// at a time where the row allows it. Columns outside keep what was there; the reader knows them.
template <class T>
struct RowCopy {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  int pixel, pixel_step;  // this thread's columns
  int channel;            // of a block's channels, this thread's 16 bytes
  int valid;              // how many of them exist
  bool vectors;

  __device__ RowCopy(int thread, int threads, int groups, int first_channel, int all_channels, bool vectors)
      : vectors(vectors) {
    const int pieces = groups * (kGroupChannels / kVector);
    pixel = thread / pieces;
    pixel_step = threads / pieces;
    channel = thread % pieces * kVector;
    valid = min(max(all_channels - first_channel - channel, 0), kVector);
  }

  // `row` points at column 0 and the block's first channel; a pixel has `row_channels` channels in memory,
  // `block_channels` here.
  __device__ void operator()(T* shared, const T* row, int first, int width, int columns, int64_t row_channels,
                             int block_channels) const {
    if (valid == 0) return;
#pragma unroll 1
    for (int i = pixel; i < width; i += pixel_step) {
      const int column = first + i;
      if (static_cast<unsigned>(column) >= static_cast<unsigned>(columns)) continue;
      const T* from = row + column * row_channels + channel;
      T* to = shared + i * block_channels + channel;
      if (vectors) {
        __pipeline_memcpy_async(to, from, 16);
      } else {
#pragma unroll 1
        for (int v = 0; v < valid; ++v) to[v] = from[v];
      }
    }
  }
};

template <int kPhase>
using PhaseTag = std::integral_constant<int, kPhase>;

// Calls `body(PhaseTag<phase>{})`: inside, positions in register rings are constants.
template <int kPhases, class Body>
__device__ __forceinline__ void with_phase(int phase, Body&& body) {
  static_assert(kPhases >= 2 && kPhases <= 8);
  switch (phase) {
    case 0:
      return body(PhaseTag<0>{});
    case 1:
      return body(PhaseTag<1>{});
    case 2:
      if constexpr (kPhases > 2) return body(PhaseTag<2>{});
      break;
    case 3:
      if constexpr (kPhases > 3) return body(PhaseTag<3>{});
      break;
    case 4:
      if constexpr (kPhases > 4) return body(PhaseTag<4>{});
      break;
    case 5:
      if constexpr (kPhases > 5) return body(PhaseTag<5>{});
      break;
    case 6:
      if constexpr (kPhases > 6) return body(PhaseTag<6>{});
      break;
    case 7:
      if constexpr (kPhases > 7) return body(PhaseTag<7>{});
      break;
  }
}

// The two channels' weights, tap by tap; channels that do not exist have zeros.
template <class Traits, class Weight = typename Traits::Element>
__device__ __forceinline__ void load_weights(float2 (&w)[Traits::kTaps], const void* weight, const Seat& seat) {
  const auto* from = static_cast<const Weight*>(weight) + static_cast<int64_t>(seat.channel) * Traits::kTaps;
#pragma unroll
  for (int tap = 0; tap < Traits::kTaps; ++tap) {
    w[tap].x = seat.channels > 0 ? to_float(from[tap]) : 0.0f;
    w[tap].y = seat.channels > 1 ? to_float(from[Traits::kTaps + tap]) : 0.0f;
  }
}

}  // namespace effnet::cuda
