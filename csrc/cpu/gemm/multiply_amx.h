// The matrix product of inference in bfloat16 on AMX: a register is a tile of 16 rows of 64 bytes, and one instruction
// multiplies 16 pixels by 32 rows of W by 16 columns.
//
// The numbers of a pixel depend on the steps that K is cut into and on nothing else, and the steps on the segments'
// lengths alone, so they don't depend on how pixels are cut into blocks.
#pragma once

#include "cpu/gemm/panels.h"

namespace effnet::cpu::amx {

// Of a product whose segments are `segments`; {0, 0} where it belongs to the avx512bf16 kernel.
TileSteps steps_of(const Segment* segments, int64_t count);

#if defined(EFFNET_HAVE_AMX)
// out[pixels][kPanel] = pixels [first, first + pixels) of A times a panel of `width` groups of columns, whose rows lie
// in pairs at `panel`. The steps of `gemm` must not be zero. Leaves the calling thread's tiles in use.
void multiply(const void* a, const Gemm& gemm, int64_t first, int64_t pixels, const void* panel, int64_t width,
              float* out);

// Gives the calling thread's tiles back: to be called before anybody else's code may run in it.
void release();
#endif

}  // namespace effnet::cpu::amx
