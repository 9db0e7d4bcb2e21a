// The items of steps by kind, within one instruction set; item_kernel.cpp chooses.
#pragma once

#include "cpu/engine/network.h"
#include "cpu/gemm/multiply.h"
#include "cpu/isa/storage.h"

namespace effnet::cpu::EFFNET_ISA {

void stem_item(const Step& step, int64_t item, float* scratch);
// Squeeze, excite, classifier.
void vectors_item(const Step& step, int64_t item, float* scratch);
// Expansion and depthwise convolution of one band and one chunk of channels.
void expand_depthwise_item(const Step& step, int64_t item, float* scratch);

}  // namespace effnet::cpu::EFFNET_ISA
