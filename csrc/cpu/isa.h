// The instruction sets a kernel is compiled for, and which of them this process uses.
#pragma once

namespace effnet::cpu {

// Ordered: each one implies those before it. The numbers are those of the op `cpu_isa`.
enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

#if defined(__x86_64__) || defined(_M_X64)
#define EFFNET_DECLARE_PER_ISA(Type, name) \
  namespace baseline {                     \
  Type name;                               \
  }                                        \
  namespace avx2 {                         \
  Type name;                               \
  }                                        \
  namespace avx512 {                       \
  Type name;                               \
  }
#define EFFNET_SELECT_ISA(name)                        \
  (active_isa() == Isa::kAvx512 ? &avx512::name        \
   : active_isa() == Isa::kAvx2 ? &avx2::name          \
                                : &baseline::name)
#else
#define EFFNET_DECLARE_PER_ISA(Type, name) \
  namespace baseline {                     \
  Type name;                               \
  }
#define EFFNET_SELECT_ISA(name) (&baseline::name)
#endif

// The best one this CPU and operating system can run.
Isa supported_isa();

// The one in use: EFFNET_FAST_CPU_ISA (baseline, avx2, avx512; read once) or else the best supported one. Asking for
// more than the CPU has gives what it has.
Isa active_isa();

// Forces an instruction set for the whole process (tests, measurements).
void set_active_isa(Isa isa);

}  // namespace effnet::cpu
