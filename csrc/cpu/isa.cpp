#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace effnet::cpu {
namespace {

constexpr const char* kNames[kIsaCount] = {"baseline", "avx2", "avx512", "avx512bf16"};

Isa initial_isa() {
  const Isa best = supported_isa();
  const char* wanted = std::getenv("EFFNET_FAST_CPU_ISA");
  for (int i = 0; wanted != nullptr && i < kIsaCount; ++i) {
    if (std::strcmp(wanted, kNames[i]) == 0) return std::min(best, static_cast<Isa>(i));
  }
  return best;
}

std::atomic<Isa>& current_isa() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

}  // namespace

Isa supported_isa() {
  Isa best = Isa::kBaseline;
#if defined(EFFNET_HAVE_AVX2)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return best;
  best = Isa::kAvx2;
#endif
#if defined(EFFNET_HAVE_AVX512)
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return best;
  }
  best = Isa::kAvx512;
#endif
#if defined(EFFNET_HAVE_AVX512BF16)
  if (__builtin_cpu_supports("avx512bf16")) best = Isa::kAvx512Bf16;
#endif
  return best;
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa active_isa() { return current_isa().load(std::memory_order_relaxed); }

void set_active_isa(Isa isa) { current_isa().store(std::min(isa, supported_isa()), std::memory_order_relaxed); }

}  // namespace effnet::cpu
