// Whether this processor has AMX for bfloat16 and the operating system keeps its registers.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace effnet {

// True does not mean that tiles may be used: Linux grants them to a process that asks (csrc/cpu/isa.cpp does).
inline bool cpu_has_amx() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  // OSXSAVE: xgetbv exists and says which registers the system saves; 17 and 18 are the tiles' shapes and their data.
  if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || (c >> 27 & 1u) == 0) return false;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low >> 17 & 3u) != 3u) return false;
  // AMX-BF16 and AMX-TILE.
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 22 & 1u) == 0 || (d >> 24 & 1u) == 0) return false;
  // Palette 1: 8 tiles of 16 rows of 64 bytes.
  if (!__get_cpuid_count(0x1d, 1, &a, &b, &c, &d)) return false;
  return (b & 0xffffu) == 64 && b >> 16 >= 8 && (c & 0xffffu) >= 16;
#else
  return false;
#endif
}

}  // namespace effnet
