// A compiled network: its layers and where their packed weights lie.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/params.h"

namespace effnet::cpu {

// To be raised with every change of the records below, of their order in a program, or of how weights are packed
// (compile.cpp): programs are pickled, and another version must not read them.
constexpr int64_t kProgramFormat = 3;

// Weights are byte offsets.
struct ConvRecord {
  int64_t in, out;  // channels; out = 0: there is no such layer
  int64_t kernel, stride;
  bool same;  // TensorFlow's padding, from the size of the input
  int64_t left, right, top, bottom;
  Activation act;
  // A matrix of K rows in panels [K][width] (bfloat16: [K / 2][width][2], K made even); or [groups][kernel^2][16] of a
  // depthwise convolution, always fp32. K of a dense k x k convolution is k rows of k pixels of `in` (made even)
  // channels.
  int64_t weight;
  int64_t bias;  // fp32, zeros up to a multiple of 16
};

struct LinearRecord {
  int64_t in, out;
  Activation act;
  int64_t weight;  // [groups of out][in][16]
  int64_t bias;
};

struct BlockRecord {
  ConvRecord expand, depthwise;
  LinearRecord squeeze, excite;
  ConvRecord project;
  bool residual;
};

struct Program {
  StorageType dtype;  // of the weights and of what is stored between layers
  bool pool;          // the mean over the image after the head
  ConvRecord stem, head;
  LinearRecord classifier;
  std::vector<BlockRecord> blocks;
};

// A program as numbers, and back. Every number is checked: `wrong`, if not empty, says what is wrong with them.
std::vector<int64_t> to_numbers(Program program);
Program from_numbers(const int64_t* numbers, int64_t count, std::string* wrong);

}  // namespace effnet::cpu
