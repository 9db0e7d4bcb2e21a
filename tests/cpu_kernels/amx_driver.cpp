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
#include "cpu/gemm/multiply_amx.h"
#include "product.h"

extern "C" void amx_emulate();
extern "C" long amx_products();
extern "C" long amx_threads();

namespace {

using effnet::cpu::Gemm;
using effnet::cpu::kPanel;
using effnet::cpu::Segment;
using effnet::cpu::TileSteps;
using effnet::cpu::baseline::BFloat16;

void fail(const char* what, const Gemm& gemm, const TileSteps& steps, int pixels) {
  printf("%s: %d pixels, K %ld, %ld channels, steps %d and %d\n", what, pixels, static_cast<long>(gemm.depth),
         static_cast<long>(gemm.channels), steps.full, steps.rest);
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

using Problem = product::Problem<BFloat16>;

std::vector<float> tiles(const Problem& p, const TileSteps& steps, int64_t panel, int64_t from, int64_t count) {
  std::vector<float> out(static_cast<size_t>(count * kPanel), NAN);
  Gemm gemm = p.gemm;
  gemm.tiles = steps;
  effnet::cpu::amx::multiply(p.a.data(), gemm, p.first + from, count, p.panel_weights(panel),
                             p.gemm.panels.width(panel), out.data());
  return out;
}

void check(const Problem& p, const TileSteps& steps) {
  for (int64_t panel = 0; panel < p.gemm.panels.count; ++panel) {
    const int64_t columns = p.columns(panel);
    const std::vector<float> got = tiles(p, steps, panel, 0, p.pixels);
    std::vector<float> other(got.size());
    effnet::cpu::baseline::multiply(p.a.data(), p.gemm, p.first, p.pixels, p.weights.data(), panel, other.data());
    double error = 0, baseline = 0, largest = 0;
    for (int64_t i = 0; i < p.pixels; ++i) {
      for (int64_t c = 0; c < kPanel; ++c) {
        const float value = got[i * kPanel + c];
        if (c >= columns) {
          if (!isnan(value)) fail("written beside the panel", p.gemm, steps, p.pixels);
          continue;
        }
        if (isnan(value)) fail("not written", p.gemm, steps, p.pixels);
        const double truth = p.exact(panel, i, c);
        error = fmax(error, fabs(value - truth));
        baseline = fmax(baseline, fabs(other[i * kPanel + c] - truth)), largest = fmax(largest, fabs(truth));
      }
    }
    if (error > 2 * baseline + largest * 0x1p-23) {
      printf("error %.3e, without tiles %.3e\n", error, baseline);
      fail("wrong numbers", p.gemm, steps, p.pixels);
    }
    // The same bits whatever block a pixel is in.
    for (int64_t i = 0; i < p.pixels;) {
      const int64_t count = std::min<int64_t>(1 + (i * 7 + p.pixels) % 40, p.pixels - i);
      const std::vector<float> part = tiles(p, steps, panel, i, count);
      for (int64_t pixel = 0; pixel < count; ++pixel) {
        if (memcmp(&part[pixel * kPanel], &got[(i + pixel) * kPanel], sizeof(float) * columns) != 0) {
          fail("numbers depend on the block", p.gemm, steps, p.pixels);
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
    const TileSteps steps = effnet::cpu::amx::steps_of(segments.data(), static_cast<int64_t>(segments.size()));
    if (steps.full != known.steps.full || steps.rest != known.steps.rest) fail("steps", gemm, steps, 0);
  }
}

}  // namespace

int main(int count, char** arguments) {
  // Where there is AMX, the processor itself is tested, and its tiles are not counted.
  const bool native = effnet::cpu_has_amx() && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  if (!native) amx_emulate();
  if (count == 2 && strcmp(arguments[1], "wrong") == 0) {
    std::mt19937 random(1);
    for (;;) {
      const Problem problem(random);
      TileSteps steps = steps_for(problem.segments);
      if (steps.rest < 4) continue;
      steps.rest -= 2;
      check(problem, steps);
      return 0;
    }
  }
  check_steps();
  std::mt19937 random(static_cast<unsigned>(atoi(arguments[1])));
  int two_sizes = 0;
  for (int i = 0; i < atoi(arguments[2]); ++i) {
    const Problem problem(random);
    const TileSteps steps = steps_for(problem.segments);
    two_sizes += steps.rest > 0;
    check(problem, steps);
  }
  if (!native && amx_threads() != 1) return puts("tiles: expected one thread to use them"), 1;
  effnet::cpu::amx::release();
  effnet::cpu::amx::release();
  if (amx_threads() != 0) return puts("tiles: not released"), 1;
  printf("%ld products of tiles; two sizes of steps in %d\n", amx_products(), two_sizes);
}
