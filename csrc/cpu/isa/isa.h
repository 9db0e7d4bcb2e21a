// The instruction sets a kernel is compiled for, and which of them this process uses.
#pragma once

namespace effnet::cpu {

// Ordered: each one implies those before it. The numbers are those of the op `cpu_isa`.
//
// kAmx has no copy of its own: it runs those of kAvx512Bf16, in which one function, the matrix product of inference in
// bfloat16, leaves its work to csrc/cpu/gemm/multiply_amx.cpp.
enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmx = 4 };
constexpr int kIsaCount = 5;

// Which copies exist is the build's decision (an old compiler lacks the newest); EFFNET_HAVE_<ISA> says so.
#if defined(EFFNET_HAVE_AVX2)
#define EFFNET_DECLARE_AVX2(Type, name) \
  namespace avx2 {                      \
  Type name;                            \
  }
#define EFFNET_CASE_AVX2(name) active_isa() == Isa::kAvx2 ? &avx2::name:
#else
#define EFFNET_DECLARE_AVX2(Type, name)
#define EFFNET_CASE_AVX2(name)
#endif
#if defined(EFFNET_HAVE_AVX512)
#define EFFNET_DECLARE_AVX512(Type, name) \
  namespace avx512 {                      \
  Type name;                              \
  }
#define EFFNET_CASE_AVX512(name) active_isa() == Isa::kAvx512 ? &avx512::name:
#else
#define EFFNET_DECLARE_AVX512(Type, name)
#define EFFNET_CASE_AVX512(name)
#endif
#if defined(EFFNET_HAVE_AVX512BF16)
#define EFFNET_DECLARE_AVX512BF16(Type, name) \
  namespace avx512bf16 {                      \
  Type name;                                  \
  }
#define EFFNET_CASE_AVX512BF16(name) active_isa() >= Isa::kAvx512Bf16 ? &avx512bf16::name:
#else
#define EFFNET_DECLARE_AVX512BF16(Type, name)
#define EFFNET_CASE_AVX512BF16(name)
#endif

// Declares function `name` of type `Type` in the namespace of every instruction set.
#define EFFNET_DECLARE_PER_ISA(Type, name) \
  namespace baseline {                     \
  Type name;                               \
  }                                        \
  EFFNET_DECLARE_AVX2(Type, name)          \
  EFFNET_DECLARE_AVX512(Type, name)        \
  EFFNET_DECLARE_AVX512BF16(Type, name)

// The copy of `name` to run now.
#define EFFNET_SELECT_ISA(name) \
  (EFFNET_CASE_AVX512BF16(name) EFFNET_CASE_AVX512(name) EFFNET_CASE_AVX2(name) & baseline::name)

// The best one up to `wanted` that this CPU and operating system can run. Asks the system for AMX if that is wanted.
Isa supported_isa(Isa wanted);

// The one in use: EFFNET_FAST_CPU_ISA (baseline, avx2, avx512, avx512bf16, amx; read once) or else the best supported
// one.
// Asking for more than the CPU has gives what it has.
Isa active_isa();

// Forces an instruction set for the whole process (tests, measurements).
void set_active_isa(Isa isa);

}  // namespace effnet::cpu
