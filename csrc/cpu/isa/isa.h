// The instruction sets a kernel is compiled for, and which of them this process uses.
#pragma once

namespace effnet::cpu {

// A number a row of the table in isa.cpp, which says what each one implies; those of the op `cpu_isa`.
//
// kAmx has no copy of its own: it runs those of kAvx512Bf16, in which one function, the matrix product of inference in
// bfloat16, leaves its work to csrc/cpu/gemm/multiply_amx.cpp.
enum class Isa : int { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };
constexpr int kIsaCount = 5;

// ROW(namespace of a copy, its Isa, ...) for every copy there is, each before those that it implies. Which exist is the
// build's decision (an old compiler lacks the newest); EFFNET_HAVE_<ISA> says so.
#if defined(EFFNET_HAVE_AVX2)
#define EFFNET_COPY_AVX2(ROW, ...) ROW(avx2, kAvx2, __VA_ARGS__)
#else
#define EFFNET_COPY_AVX2(ROW, ...)
#endif
#if defined(EFFNET_HAVE_AVX512)
#define EFFNET_COPY_AVX512(ROW, ...) ROW(avx512, kAvx512, __VA_ARGS__)
#else
#define EFFNET_COPY_AVX512(ROW, ...)
#endif
#if defined(EFFNET_HAVE_AVX512BF16)
#define EFFNET_COPY_AVX512BF16(ROW, ...) ROW(avx512bf16, kAvx512Bf16, __VA_ARGS__)
#else
#define EFFNET_COPY_AVX512BF16(ROW, ...)
#endif
#define EFFNET_COPIES(ROW, ...)            \
  EFFNET_COPY_AVX512BF16(ROW, __VA_ARGS__) \
  EFFNET_COPY_AVX512(ROW, __VA_ARGS__)     \
  EFFNET_COPY_AVX2(ROW, __VA_ARGS__)       \
  ROW(baseline, kBaseline, __VA_ARGS__)

#define EFFNET_DECLARE_COPY(copy, isa, Type, name) \
  namespace copy {                                 \
  Type name;                                       \
  }
#define EFFNET_SELECT_COPY(copy, isa, name) runs(Isa::isa) ? &copy::name:

// Declares function `name` of type `Type` in the namespace of every copy.
#define EFFNET_DECLARE_PER_ISA(Type, name) EFFNET_COPIES(EFFNET_DECLARE_COPY, Type, name)

// The copy of `name` to run now.
#define EFFNET_SELECT_ISA(name) (EFFNET_COPIES(EFFNET_SELECT_COPY, name) nullptr)

// The best one of `wanted` and what it implies that this CPU and operating system can run. Asks the system for AMX if
// that is wanted.
Isa supported_isa(Isa wanted);

// The one in use: EFFNET_FAST_CPU_ISA (a name of isa.cpp's table; read once) or else the best supported one. Asking for
// more than the CPU has gives what it has.
Isa active_isa();

// Whether the one in use is `isa` or implies it.
bool runs(Isa isa);

// Forces an instruction set for the whole process (tests, measurements).
void set_active_isa(Isa isa);

}  // namespace effnet::cpu
