#include "cpu/isa/isa.h"

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

#if defined(EFFNET_HAVE_AMX)
// Linux gives tiles, 8 KB more of every thread's state, to a process that asks for them: once, for all of its threads.
bool may_use_amx() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  static const bool granted = cpu_has_amx() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}
#endif

// What this CPU has of a set beyond those that it implies; false for one that was not compiled.
bool has_baseline() { return true; }

bool has_avx2() {
#if defined(EFFNET_HAVE_AVX2)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(EFFNET_HAVE_AVX512)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

bool has_avx512bf16() {
#if defined(EFFNET_HAVE_AVX512BF16)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool has_amx() {
#if defined(EFFNET_HAVE_AMX)
  return may_use_amx();
#else
  return false;
#endif
}

struct IsaRow {
  const char* name;  // as in EFFNET_FAST_CPU_ISA
  Isa implies;
  bool (*has)();
};

// In the order of the enumerators, each after the one that it implies.
constexpr IsaRow kTable[kIsaCount] = {
    {"baseline", Isa::kBaseline, has_baseline}, {"avx2", Isa::kBaseline, has_avx2},
    {"avx512", Isa::kAvx2, has_avx512},         {"avx512bf16", Isa::kAvx512, has_avx512bf16},
    {"amx", Isa::kAvx512Bf16, has_amx},
};

const IsaRow& row(Isa isa) { return kTable[static_cast<int>(isa)]; }

bool is_supported(Isa isa) { return isa == Isa::kBaseline || (is_supported(row(isa).implies) && row(isa).has()); }

Isa initial_isa() {
  const char* wanted = std::getenv("EFFNET_FAST_CPU_ISA");
  for (int i = 0; wanted != nullptr && i < kIsaCount; ++i) {
    if (std::strcmp(wanted, kTable[i].name) == 0) return supported_isa(static_cast<Isa>(i));
  }
  int best = kIsaCount - 1;
  while (!is_supported(static_cast<Isa>(best))) --best;
  return static_cast<Isa>(best);
}

std::atomic<Isa>& current_isa() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

}  // namespace

Isa supported_isa(Isa wanted) { return is_supported(wanted) ? wanted : supported_isa(row(wanted).implies); }

Isa active_isa() { return current_isa().load(std::memory_order_relaxed); }

bool runs(Isa isa) {
  Isa active = active_isa();
  while (active != isa && active != Isa::kBaseline) active = row(active).implies;
  return active == isa;
}

void set_active_isa(Isa isa) { current_isa().store(supported_isa(isa), std::memory_order_relaxed); }

}  // namespace effnet::cpu
