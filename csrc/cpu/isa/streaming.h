// Results that are too large for any cache, written past all of them: memory is then not read before it is written.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/isa/vec.h"

namespace effnet::cpu::EFFNET_ISA {

// Whether to do so with a dense result of `values` floats in rows of `channels`. Whole cache lines only, which narrower
// vectors do not fill; and where the next pass may still find it in a cache, it should.
inline bool writes_past_caches(const void* to, int64_t values, int64_t channels) {
  constexpr int64_t kLeastValues = 4 << 20;
  return kVectorBytes == 64 && values >= kLeastValues && channels % kLanes == 0 &&
         reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0;
}

inline void store_past_caches(float* to, Vec x) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)x.v);
#else
  store(to, x);
#endif
}

// bfloat16 fills half a line.
inline void store_past_caches(BFloat16* to, Vec x) { store(to, x); }

// Both ends are multiples of 32 bytes.
inline void copy_past_caches(void* to, const void* from, int64_t bytes) {
#if defined(__AVX__)
  for (int64_t i = 0; i < bytes; i += 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(static_cast<char*>(to) + i),
                        _mm256_load_si256(reinterpret_cast<const __m256i*>(static_cast<const char*>(from) + i)));
  }
#elif defined(__SSE2__)
  for (int64_t i = 0; i < bytes; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(static_cast<char*>(to) + i),
                     _mm_load_si128(reinterpret_cast<const __m128i*>(static_cast<const char*>(from) + i)));
  }
#else
  std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

// Before another thread reads what was written so.
inline void finish_stores() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace effnet::cpu::EFFNET_ISA
