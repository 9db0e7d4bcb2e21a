// What effnet_fast/replay repeats natively: a row of launches of kernels that Triton compiled, with memory given anew;
// and the question whether tensors are like those it was recorded with.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "compiled.h"

namespace effnet::cuda {
namespace {

using torch::stable::accelerator::DeviceGuard;

struct Row {
  int64_t kernels, tensors;
};

// `words`: for each kernel how many numbers follow, and these.
Tensor replay_prepare(const Tensor& x, int64_t tensors, const std::vector<int64_t>& words) {
  const Checks checks("replay", x);
  std::vector<CompiledKernel> kernels;
  for (size_t at = 0; at < words.size();) {
    const size_t size = static_cast<size_t>(words[at++]);
    if (size > words.size() - at) checks.fail("words", "whole kernels", "a part of one");
    kernels.push_back(compiled_kernel(checks, words.data() + at, size, tensors, "words"));
    at += size;
  }
  launch_kernel();
  const Row row{static_cast<int64_t>(kernels.size()), tensors};
  const size_t bytes = kernels.size() * sizeof(CompiledKernel);
  Tensor prepared = torch::stable::empty({static_cast<int64_t>(sizeof(row) + bytes)}, ScalarType::Byte);
  char* memory = static_cast<char*>(prepared.mutable_data_ptr());
  std::memcpy(memory, &row, sizeof(row));
  if (bytes != 0) std::memcpy(memory + sizeof(row), kernels.data(), bytes);
  return prepared;
}

// The first tensor says on which GPU and stream.
void replay_launch(const std::vector<Tensor>& tensors, const Tensor& prepared) {
  STD_TORCH_CHECK(prepared.is_cpu() && prepared.scalar_type() == ScalarType::Byte && prepared.is_contiguous() &&
                      prepared.numel() >= static_cast<int64_t>(sizeof(Row)),
                  "effnet_fast.replay: prepared: expected what replay_prepare returned, got another tensor");
  const char* memory = static_cast<const char*>(prepared.const_data_ptr());
  Row row;
  std::memcpy(&row, memory, sizeof(row));
  const auto* kernels = reinterpret_cast<const CompiledKernel*>(memory + sizeof(row));
  STD_TORCH_CHECK(prepared.numel() == static_cast<int64_t>(sizeof(row) + row.kernels * sizeof(CompiledKernel)) &&
                      static_cast<int64_t>(tensors.size()) == row.tensors && row.tensors > 0,
                  "effnet_fast.replay: tensors: expected ", row.tensors, ", got ", tensors.size());
  std::vector<void*> addresses;
  addresses.reserve(tensors.size());
  for (const Tensor& t : tensors) addresses.push_back(const_cast<void*>(t.const_data_ptr()));
  const DeviceGuard guard(tensors[0].get_device_index());
  const cudaStream_t stream = current_stream(tensors[0]);
  for (int64_t i = 0; i < row.kernels; ++i) launch(kernels[i], addresses.data(), stream);
}

// Calls `see` with every number that a kernel may be chosen by; ends early where that says no.
template <class See>
bool describe(const std::vector<Tensor>& tensors, See see) {
  for (const Tensor& t : tensors) {
    const int64_t rank = t.dim();
    const auto alignment = static_cast<int64_t>(reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16);
    if (!see(static_cast<int64_t>(t.scalar_type())) || !see(t.get_device_index()) || !see(alignment) || !see(rank))
      return false;
    for (int64_t i = 0; i < rank; ++i)
      if (!see(t.size(i)) || !see(t.stride(i))) return false;
  }
  return true;
}

Tensor replay_facts(const std::vector<Tensor>& tensors) {
  std::vector<int64_t> facts;
  describe(tensors, [&](int64_t fact) {
    facts.push_back(fact);
    return true;
  });
  Tensor kept = torch::stable::empty({static_cast<int64_t>(facts.size())}, ScalarType::Long);
  if (!facts.empty()) std::memcpy(kept.mutable_data_ptr(), facts.data(), facts.size() * sizeof(int64_t));
  return kept;
}

bool replay_same(const std::vector<Tensor>& tensors, const Tensor& facts) {
  STD_TORCH_CHECK(facts.is_cpu() && facts.scalar_type() == ScalarType::Long && facts.is_contiguous(),
                  "effnet_fast.replay: facts: expected what replay_facts returned, got another tensor");
  const auto* next = static_cast<const int64_t*>(facts.const_data_ptr());
  const int64_t* const end = next + facts.numel();
  return describe(tensors, [&](int64_t fact) { return next != end && *next++ == fact; }) && next == end;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CUDA, m) {
  m.impl("replay_prepare", TORCH_BOX(&replay_prepare));
  m.impl("replay_launch", TORCH_BOX(&replay_launch));
  m.impl("replay_facts", TORCH_BOX(&replay_facts));
  m.impl("replay_same", TORCH_BOX(&replay_same));
}

}  // namespace effnet::cuda
