// The largest relative error of the vectorized exponential, against double precision.
#include <cmath>
#include <cstdio>

#include "cpu/isa/vec.h"

int main() {
  using namespace effnet::cpu::EFFNET_ISA;
  double worst = 0.0;
  for (int i = -87 * 4096; i <= 88 * 4096; i += kLanes) {
    float x[kLanes], y[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = static_cast<float>(i + lane) / 4096.0f;
    store(y, exponential(load(x)));
    for (int lane = 0; lane < kLanes; ++lane) {
      const double truth = std::exp(static_cast<double>(x[lane]));
      worst = std::fmax(worst, std::fabs(y[lane] / truth - 1.0));
    }
  }
  std::printf("%.3e\n", worst);
  return 0;
}
