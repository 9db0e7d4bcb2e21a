// Decides how a depthwise launch is cut into blocks. Plain C++: the launchers use it, `_C` shows it, tests force its
// choices.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define EFFNET_PLANNER __host__ __device__ constexpr
#else
#define EFFNET_PLANNER constexpr
#endif

namespace effnet::cuda {

// Half a warp spans a group of channels, two a thread.
constexpr int kLanes = 16;
constexpr int kGroupChannels = 2 * kLanes;
// Rows of shared memory in flight between their copy and their activation.
constexpr int kForwardStages = 4;
constexpr int kBackwardStages = 3;
constexpr int kForwardMaxThreads = 128;
// Vectors over the channels that the backward keeps in shared memory.
constexpr int kBackwardVectors = 9;

// Output columns of a thread in the forward, and columns of x (stride 1: of dz too) in the backward.
EFFNET_PLANNER int columns_per_thread(int kernel) { return kernel == 7 ? 2 : 4; }
// The larger the kernel, the more registers a thread needs: fewer threads let two blocks share a multiprocessor.
EFFNET_PLANNER int backward_max_threads(int kernel, int stride) {
  return kernel == 3 || (kernel == 5 && stride == 1) ? 192 : 128;
}
EFFNET_PLANNER int ceil_div(int a, int b) { return (a + b - 1) / b; }

struct DepthwiseShape {
  int batch;
  int height, width, channels;
  int out_height, out_width;
  int kernel, stride;
  int left, top;  // zeros before the first column and row
};

// A block works on `images` images, `rows` rows, `strips` strips of columns and `groups` groups of channels.
struct DepthwisePlan {
  int strips, groups, rows, images;
  int column_tiles, bands, channel_blocks, image_blocks;

  EFFNET_PLANNER int threads_per_role() const { return kLanes * strips * groups; }
  EFFNET_PLANNER int64_t partial_rows() const { return static_cast<int64_t>(image_blocks) * bands * column_tiles; }
  EFFNET_PLANNER int64_t blocks() const { return partial_rows() * channel_blocks; }
  EFFNET_PLANNER int tiles() const { return bands * column_tiles; }
};

struct DeviceLimits {
  int multiprocessors;
  int shared_per_block;
  int shared_per_multiprocessor;
};

// The rows and columns a launch divides among its blocks.
struct DepthwiseDomain {
  int first_row, rows;
  int first_column;  // of dx, in padded columns divided by the stride; wgrad always starts at 0
  int columns;
  int columns_per_strip;
};

EFFNET_PLANNER DepthwiseDomain forward_domain(const DepthwiseShape& s) {
  return {0, s.out_height, 0, s.out_width, columns_per_thread(s.kernel)};
}

// A step of the backward is one row t of dz with the rows [t * stride, (t + 1) * stride) of padded x. Columns likewise:
// dx starts at the first step that touches x, wgrad at 0; a tile of dz covers both because they differ by at most the
// halo.
EFFNET_PLANNER DepthwiseDomain backward_domain(const DepthwiseShape& s) {
  const int halo = (s.kernel - 1) / s.stride;
  const int first_row = s.top / s.stride;
  const int last_row = (s.top + s.height - 1) / s.stride;
  const int first_column = s.left / s.stride < halo ? s.left / s.stride : halo;
  const int end_column = (s.left + s.width - 1) / s.stride + 1;
  const int dz_columns = s.out_width < end_column ? s.out_width : end_column;
  const int columns = end_column - first_column > dz_columns ? end_column - first_column : dz_columns;
  return {first_row, last_row - first_row + 1, first_column, columns, columns_per_thread(s.kernel) / s.stride};
}

// Columns of a row in shared memory.
EFFNET_PLANNER int forward_width(const DepthwiseShape& s, const DepthwisePlan& p) {
  return p.strips * columns_per_thread(s.kernel) * s.stride + s.kernel - s.stride;
}
EFFNET_PLANNER int backward_dz_width(const DepthwiseShape& s, const DepthwisePlan& p) {
  return p.strips * columns_per_thread(s.kernel) / s.stride + (s.kernel - 1) / s.stride;
}
EFFNET_PLANNER int backward_x_width(const DepthwiseShape& s, const DepthwisePlan& p) {
  return p.strips * columns_per_thread(s.kernel) + s.kernel - 1;
}

// Shared memory of a block: raw ring, two activated rows, vectors, sums. The kernels lay it out in this order.
EFFNET_PLANNER int64_t forward_shared_bytes(const DepthwiseShape& s, const DepthwisePlan& p, int element) {
  const int64_t row = static_cast<int64_t>(forward_width(s, p)) * p.groups * kGroupChannels;
  const int64_t sums = 4ll * p.strips * p.groups * kGroupChannels;
  return row * kForwardStages * element + (2 * row + sums) * 4;
}
EFFNET_PLANNER int64_t backward_shared_bytes(const DepthwiseShape& s, const DepthwisePlan& p, int element, bool has_z) {
  const int64_t channels = p.groups * kGroupChannels;
  const int64_t dz = backward_dz_width(s, p) * channels;
  const int64_t x = backward_x_width(s, p) * s.stride * channels;
  return (kBackwardStages + 1) * ((has_z ? 2 : 1) * dz + x) * element + 2 * (dz + x) * 4 +
         (kBackwardVectors + 2 * p.strips) * channels * 4;
}

struct PlannerRequest {
  DepthwiseShape shape;
  int element;  // bytes
  bool backward;
  int roles;   // 1, or 2 where the backward computes dx and dweight
  bool has_z;  // the backward reads z
};

// Predicted time in microseconds. A model, to rank candidates: bytes, issued instructions, and the latency of a block's
// chain of rows, each stretched by idle multiprocessors in the last wave.
inline double predicted_time(const PlannerRequest& r, const DepthwisePlan& p, const DeviceLimits& d) {
  const DepthwiseShape& s = r.shape;
  const double taps = s.kernel * s.kernel;
  const int threads = p.threads_per_role() * r.roles;
  const int by_size = s.kernel == 3 ? 96 : s.kernel == 5 ? 168 : 232;
  const int registers = !r.backward ? by_size : 65536 / (2 * backward_max_threads(s.kernel, s.stride));
  const double shared = static_cast<double>(r.backward ? backward_shared_bytes(s, p, r.element, r.has_z)
                                                       : forward_shared_bytes(s, p, r.element));
  const int warps = ceil_div(threads, 32);
  const int by_registers = 65536 / (registers * warps * 32);
  const int by_shared = static_cast<int>(d.shared_per_multiprocessor / (shared + 1024));
  const int resident = std::max(1, std::min({by_registers, by_shared, 32, 2048 / threads}));

  // Idle multiprocessors in the last round: all of it counts while every block runs at once, half of it when later
  // blocks fill gaps.
  const double blocks = static_cast<double>(p.blocks());
  const double share = blocks / d.multiprocessors;
  const double rounds = share / resident;
  const double stretch =
      share < resident ? std::ceil(share) / share : (rounds + 0.5 * (std::ceil(rounds) - rounds)) / rounds;
  // Twelve warps hide the latency of shared memory and of the arithmetic.
  const double filled = std::min(1.0, std::min(std::ceil(share), static_cast<double>(resident)) * warps / 12);

  const double halo_rows = r.backward ? (s.kernel - 1) / s.stride : s.kernel - s.stride;
  const double steps = r.backward ? p.rows + halo_rows : p.rows * s.stride + halo_rows;
  const double width = r.backward ? backward_dz_width(s, p) : forward_width(s, p);
  const double block_channels = std::min(s.channels, p.groups * kGroupChannels);
  const double loads = r.backward ? ((r.has_z ? 2 : 1) + s.stride * s.stride) : 1;
  const double read = blocks * p.images * steps * width * block_channels * r.element * loads;
  const double columns = r.backward ? s.width : s.out_width;
  const double rows = r.backward ? s.height : s.out_height;
  const double written = static_cast<double>(s.batch) * rows * columns * s.channels * r.element;
  // Partial rows of statistics, or of sums and the weight's gradient, are written and read again.
  const double partials = static_cast<double>(p.partial_rows()) * s.channels * (r.backward ? taps + 2 : 3) * 8;
  const double memory_time = (read + written + partials) / 4.3e6 * stretch / std::min(1.0, 1.3 * filled);

  const double per_step = (taps / s.stride) * columns_per_thread(s.kernel) * 2 + 100;
  const double warp_steps = blocks * p.images * steps * warps;
  const double issue_time = warp_steps * per_step / (d.multiprocessors * 4 * 1700.0) * stretch / filled;

  // About 500 cycles a row, and the weights first; rows of a block follow each other.
  const double chain = (p.images * steps + 4) * 0.3 * std::max(1.0, std::ceil(rounds));
  return std::max({memory_time, issue_time, chain}) + 0.1 * std::min({memory_time, issue_time, chain});
}

inline DepthwisePlan make_plan(const PlannerRequest& r, int strips, int groups, int bands, int images) {
  const DepthwiseDomain domain = r.backward ? backward_domain(r.shape) : forward_domain(r.shape);
  DepthwisePlan p{};
  p.strips = strips;
  p.groups = groups;
  p.rows = ceil_div(domain.rows, bands);
  p.images = images;
  p.column_tiles = ceil_div(ceil_div(domain.columns, domain.columns_per_strip), strips);
  p.bands = ceil_div(domain.rows, p.rows);
  p.channel_blocks = ceil_div(r.shape.channels, groups * kGroupChannels);
  p.image_blocks = ceil_div(r.shape.batch, images);
  return p;
}

// Calls `visit(plan)` for every candidate that fits the device, in a fixed order. `r.shape` must not be empty.
template <class Visit>
void for_each_plan(const PlannerRequest& r, const DeviceLimits& d, Visit&& visit) {
  const DepthwiseDomain domain = r.backward ? backward_domain(r.shape) : forward_domain(r.shape);
  const int max_threads = r.backward ? backward_max_threads(r.shape.kernel, r.shape.stride) : kForwardMaxThreads;
  const int max_pieces = max_threads / (kLanes * r.roles);
  const int all_strips = ceil_div(domain.columns, domain.columns_per_strip);
  const int all_groups = ceil_div(r.shape.channels, kGroupChannels);
  constexpr int kBands[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
  constexpr int kImages[] = {1, 2, 4, 8, 16};
  const int fewest_tiles = ceil_div(all_strips, max_pieces);
  for (int tiles = fewest_tiles; tiles < fewest_tiles + 4 && tiles <= all_strips; ++tiles) {
    const int even_strips = ceil_div(all_strips, tiles);
    if (ceil_div(all_strips, even_strips) != tiles) continue;
    for (int groups = 1; groups <= all_groups; groups *= 2) {
      // Two roles must not share a warp.
      const int strips = r.roles == 2 && groups == 1 ? (even_strips + 1) / 2 * 2 : even_strips;
      if (strips * groups > max_pieces) continue;
      for (int bands : kBands) {
        if (bands > domain.rows) break;
        const DepthwisePlan banded = make_plan(r, strips, groups, bands, 1);
        if (banded.bands != bands) continue;
        const int64_t shared = r.backward ? backward_shared_bytes(r.shape, banded, r.element, r.has_z)
                                          : forward_shared_bytes(r.shape, banded, r.element);
        if (shared > d.shared_per_block) continue;
        // Several images a block only where an image is too small to be cut.
        for (int images : kImages) {
          if (images > 1 && (bands > 1 || images > r.shape.batch)) break;
          visit(make_plan(r, strips, groups, bands, images));
        }
      }
    }
  }
}

// The candidate with the least predicted time, or the `index`-th one. False if there is none (or no such index).
inline bool choose_plan(const PlannerRequest& r, const DeviceLimits& d, int64_t index, DepthwisePlan* plan) {
  int64_t count = 0;
  bool found = false;
  double best = 0;
  for_each_plan(r, d, [&](const DepthwisePlan& candidate) {
    const double time = index < 0 ? predicted_time(r, candidate, d) : 0;
    if (index < 0 ? (!found || time < best) : count == index) {
      *plan = candidate;
      best = time;
      found = true;
    }
    ++count;
  });
  return found;
}

}  // namespace effnet::cuda
