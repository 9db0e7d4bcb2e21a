#include "cpu/isa/isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "common/amx_cpuid.h"

#if defined(EFFNET_HAVE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace effnet::cpu {
namespace {

constexpr const char* kNames[kIsaCount] = {"baseline", "avx2", "avx512", "avx512bf16", "amx"};

Isa initial_isa() {
  const char* wanted = std::getenv("EFFNET_FAST_CPU_ISA");
  for (int i = 0; wanted != nullptr && i < kIsaCount; ++i) {
    if (std::strcmp(wanted, kNames[i]) == 0) return supported_isa(static_cast<Isa>(i));
  }
  return supported_isa(Isa::kAmx);
}

std::atomic<Isa>& current_isa() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

#if defined(EFFNET_HAVE_AMX)
// Linux gives tiles, 8 KB more of every thread's state, to a process that asks for them: once, for all of its threads.
bool may_use_amx() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  static const bool granted = cpu_has_amx() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}
#endif

Isa best_isa(Isa wanted) {
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
  if (!__builtin_cpu_supports("avx512bf16")) return best;
  best = Isa::kAvx512Bf16;
#endif
#if defined(EFFNET_HAVE_AMX)
  if (wanted == Isa::kAmx && may_use_amx()) best = Isa::kAmx;
#else
  (void)wanted;
#endif
  return best;
}

}  // namespace

Isa supported_isa(Isa wanted) { return std::min(best_isa(wanted), wanted); }

Isa active_isa() { return current_isa().load(std::memory_order_relaxed); }

void set_active_isa(Isa isa) { current_isa().store(supported_isa(isa), std::memory_order_relaxed); }

}  // namespace effnet::cpu
