// The product on tiles against fp64 and against the kernel without them, on random shapes, every operand exactly as
// large as it must be. `driver SEED COUNT`, or `driver wrong`, which gives the kernel a wrong remainder of K.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <random>
#include <vector>

#include "common/amx_cpuid.h"
#include "cpu/network_amx.h"
#include "cpu/network_kernels.h"

extern "C" void amx_emulate();
extern "C" long amx_products();
extern "C" long amx_threads();

namespace {

using effnet::cpu::divide_up;
using effnet::cpu::Gemm;
using effnet::cpu::kGroup;
using effnet::cpu::kPanel;
using effnet::cpu::Panels;
using effnet::cpu::Segment;
using effnet::cpu::TileSteps;
using effnet::cpu::baseline::as_float;
using effnet::cpu::baseline::BFloat16;

void fail(const char* what, const Gemm& gemm, int pixels) {
  printf("%s: %d pixels, K %ld, %ld channels, steps %d and %d\n", what, pixels, static_cast<long>(gemm.depth),
         static_cast<long>(gemm.channels), gemm.tiles.full, gemm.tiles.rest);
  exit(1);
}

// What steps_of gives, or for a product that it leaves to the other kernel any steps that fit.
TileSteps steps_for(const std::vector<Segment>& segments) {
  const TileSteps chosen = effnet::cpu::amx::steps_of(segments.data(), static_cast<int64_t>(segments.size()));
  if (chosen.full > 0) return chosen;
  for (int full = 32; full > 2; full -= 2) {
    int rest = 0;
    bool fits = true;
    for (const Segment& segment : segments) {
      const int left = segment.length % full;
      fits = fits && (left == 0 || rest == 0 || left == rest);
      rest = left == 0 ? rest : left;
    }
    if (fits) return {static_cast<int16_t>(full), static_cast<int16_t>(rest)};
  }
  return {2, 0};
}

// A product with operands of its own.
struct Problem {
  std::vector<Segment> segments;
  std::vector<BFloat16> a, weights;
  Gemm gemm{};
  int64_t first;
  int pixels;

  explicit Problem(std::mt19937& random) {
    const auto draw = [&](int low, int high) { return low + static_cast<int>(random() % unsigned(high - low + 1)); };
    std::normal_distribution<float> normal;
    first = draw(0, 3), pixels = draw(1, 70);
    const int total = static_cast<int>(first) + pixels;
    const int count = draw(1, 4), common = 2 * draw(1, count == 1 ? 100 : 25);
    int64_t offset = 0;
    for (int s = 0; s < count; ++s) {
      const int length = s > 0 && draw(0, 3) == 0 ? 2 * draw(1, 25) : common;
      // The last one ends with the memory; strides as in the network, or longer, or shorter as those of the stem.
      const int stride = draw(0, 4) == 0 ? std::max(length / 2, 1) : length + 2 * draw(0, 4);
      segments.push_back({offset, stride, length});
      offset += static_cast<int64_t>(stride) * (total - 1) + length;
      gemm.depth += length;
    }
    a.resize(static_cast<size_t>(offset));
    gemm.channels = draw(1, 130), gemm.panels = Panels::of(gemm.channels);
    weights.resize(static_cast<size_t>(gemm.depth * gemm.panels.groups * kGroup));
    const float scale = 1.0f / sqrtf(static_cast<float>(gemm.depth));
    for (BFloat16& x : a) x = effnet::cpu::baseline::to_bfloat16(normal(random));
    for (BFloat16& x : weights) x = effnet::cpu::baseline::to_bfloat16(normal(random) * scale);
    gemm.segments = segments.data(), gemm.segment_count = count;
    gemm.tiles = steps_for(segments);
  }

  // Panels lie one after the other, [K / 2][width][2] each.
  float weight(int64_t panel, int64_t k, int64_t column) const {
    const int64_t width = gemm.panels.width(panel) * kGroup;
    return as_float(weights[gemm.panels.first(panel) * kGroup * gemm.depth + (k / 2 * width + column) * 2 + k % 2]);
  }

  double exact(int64_t panel, int64_t pixel, int64_t column) const {
    double sum = 0;
    int64_t k = 0;
    for (const Segment& s : segments) {
      for (int64_t i = 0; i < s.length; ++i, ++k) {
        sum += double(as_float(a[s.offset + (first + pixel) * s.pixel_stride + i])) * double(weight(panel, k, column));
      }
    }
    return sum;
  }

  std::vector<float> tiles(int64_t panel, int64_t from, int64_t count) const {
    std::vector<float> out(static_cast<size_t>(count * kPanel), NAN);
    const BFloat16* b = weights.data() + gemm.panels.first(panel) * kGroup * gemm.depth;
    effnet::cpu::amx::multiply(a.data(), gemm, first + from, count, b, gemm.panels.width(panel), out.data());
    return out;
  }
};

void check(const Problem& p) {
  for (int64_t panel = 0; panel < p.gemm.panels.count; ++panel) {
    const int64_t columns = p.gemm.panels.width(panel) * kGroup;
    const std::vector<float> got = p.tiles(panel, 0, p.pixels);
    std::vector<float> other(got.size());
    Gemm plain = p.gemm;
    plain.tiles = {};
    effnet::cpu::baseline::multiply(p.a.data(), plain, p.first, p.pixels, p.weights.data(), panel, other.data());
    double error = 0, baseline = 0, largest = 0;
    for (int64_t i = 0; i < p.pixels; ++i) {
      for (int64_t c = 0; c < kPanel; ++c) {
        const float value = got[i * kPanel + c];
        if (c >= columns) {
          if (!isnan(value)) fail("written beside the panel", p.gemm, p.pixels);
          continue;
        }
        const double truth = p.exact(panel, i, c);
        const double off = fabs(value - truth);
        error = off <= error ? error : off;  // NaN stays
        baseline = fmax(baseline, fabs(other[i * kPanel + c] - truth)), largest = fmax(largest, fabs(truth));
      }
    }
    if (!(error <= 2 * baseline + largest * 0x1p-23)) {
      printf("error %.3e, without tiles %.3e\n", error, baseline);
      fail("wrong numbers", p.gemm, p.pixels);
    }
    // The same bits whatever block a pixel is in.
    for (int64_t i = 0; i < p.pixels;) {
      const int64_t count = std::min<int64_t>(1 + (i * 7 + p.pixels) % 40, p.pixels - i);
      const std::vector<float> part = p.tiles(panel, i, count);
      for (int64_t pixel = 0; pixel < count; ++pixel) {
        if (memcmp(&part[pixel * kPanel], &got[(i + pixel) * kPanel], sizeof(float) * columns) != 0) {
          fail("numbers depend on the block", p.gemm, p.pixels);
        }
      }
      i += count;
    }
  }
}

// Lengths and what steps_of makes of them.
void check_steps() {
  struct Known {
    std::vector<int> lengths;
    TileSteps steps;
  };
  const Known all[] = {
      {{8}, {0, 0}},           {{16}, {16, 0}},     {{32}, {32, 0}},          {{40}, {20, 0}},
      {{56}, {28, 0}},         {{80}, {32, 16}},    {{136}, {32, 8}},         {{192}, {32, 0}},
      {{48, 48, 48}, {24, 0}}, {{48, 24}, {24, 0}}, {{48, 48, 32}, {32, 16}}, {{48, 48, 40}, {24, 16}},
      {{12, 12, 12}, {12, 0}}, {{3, 3, 3}, {0, 0}}, {{4, 4, 4}, {0, 0}},      {{48, 46, 38, 30, 22}, {0, 0}},
  };
  for (const Known& known : all) {
    Gemm gemm{};
    std::vector<Segment> segments;
    for (const int length : known.lengths) segments.push_back({0, length, length}), gemm.depth += length;
    gemm.tiles = effnet::cpu::amx::steps_of(segments.data(), static_cast<int64_t>(segments.size()));
    if (gemm.tiles.full != known.steps.full || gemm.tiles.rest != known.steps.rest) fail("steps", gemm, 0);
  }
}

}  // namespace

int main(int count, char** arguments) {
  // Where there is AMX, the processor itself is tested, and its tiles are not counted.
  const bool native = effnet::cpu_has_amx() && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  if (!native) amx_emulate();
  if (count == 2 && strcmp(arguments[1], "wrong") == 0) {
    std::mt19937 random(1);
    Problem problem(random);
    while (problem.gemm.tiles.rest < 4) problem = Problem(random), problem.gemm.segments = problem.segments.data();
    problem.gemm.tiles.rest -= 2;
    check(problem);
    return 0;
  }
  check_steps();
  std::mt19937 random(static_cast<unsigned>(atoi(arguments[1])));
  int two_sizes = 0;
  for (int i = 0; i < atoi(arguments[2]); ++i) {
    const Problem problem(random);
    two_sizes += problem.gemm.tiles.rest > 0;
    check(problem);
  }
  if (!native && amx_threads() != 1) return puts("tiles: expected one thread to use them"), 1;
  effnet::cpu::amx::release();
  effnet::cpu::amx::release();
  if (amx_threads() != 0) return puts("tiles: not released"), 1;
  printf("%ld products of tiles; two sizes of steps in %d\n", amx_products(), two_sizes);
}
