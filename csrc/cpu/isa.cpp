#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace effnet::cpu {
namespace {

Isa initial_isa() {
  const Isa best = supported_isa();
  const char* wanted = std::getenv("EFFNET_FAST_CPU_ISA");
  if (wanted == nullptr) return best;
  if (std::strcmp(wanted, "baseline") == 0) return Isa::kBaseline;
  if (std::strcmp(wanted, "avx2") == 0) return std::min(best, Isa::kAvx2);
  return best;
}

std::atomic<Isa>& current_isa() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

}  // namespace

Isa supported_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa active_isa() { return current_isa().load(std::memory_order_relaxed); }

void set_active_isa(Isa isa) { current_isa().store(std::min(isa, supported_isa()), std::memory_order_relaxed); }

}  // namespace effnet::cpu
