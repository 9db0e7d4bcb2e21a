// A network from its folded tensors and a description: checked, packed, and returned as a program.
#include "cpu/engine/compile.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/engine/run.h"
#include "cpu/engine/steps.h"
#include "cpu/ops/checks.h"

namespace effnet::cpu {
namespace {

constexpr const char* kOp = "network_compile";
// Takes a network's layers in their order from the three lists of network_compile.
class Description {
 public:
  Description(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
              const std::vector<int64_t>& numbers)
      : weights_(weights), biases_(biases), numbers_(numbers) {}

  int64_t number(int64_t least, int64_t most) {
    EFFNET_CHECK(next_ < numbers_.size(), kOp, "description", "more numbers", numbers_.size());
    const int64_t value = numbers_[next_++];
    EFFNET_CHECK(least <= value && value <= most, kOp, "description",
                 "a number of " + std::to_string(least) + " to " + std::to_string(most), value);
    return value;
  }

  bool flag() { return number(0, 1) == 1; }

  // A layer of that rank, or none where it may be missing.
  LayerSource layer(const std::string& name, int64_t rank, bool optional = false, int64_t expected_groups = 1) {
    LayerSource s{};
    if (optional && !flag()) return s;
    EFFNET_CHECK(taken_ < weights_.size() && taken_ < biases_.size(), kOp, name, "a weight and a bias", "none");
    const Tensor weight = dense(weights_[taken_]), bias = dense(biases_[taken_]);
    ++taken_;
    s.weight_dtype = check_dtype(weight, kOp, name.c_str()), s.bias_dtype = check_dtype(bias, kOp, name.c_str());
    s.weight = weight.const_data_ptr(), s.bias = bias.const_data_ptr();
    const bool fits = weight.dim() == rank && bias.dim() == 1 && bias.size(0) == weight.size(0) && bias.size(0) > 0 &&
                      (rank == 2 || (weight.size(2) == weight.size(3) && weight.size(2) > 0));
    const char* expected = rank == 2 ? "weight [O, I] and bias [O]" : "weight [O, I, k, k] and bias [O]";
    EFFNET_CHECK(fits, kOp, name, expected, to_text(weight), " and ", to_text(bias));
    s.out = weight.size(0), s.in = weight.size(1), s.kernel = rank == 4 ? weight.size(2) : 1;
    s.stride = next();
    const int64_t groups = next();
    s.same = flag();
    for (int64_t* side : {&s.left, &s.right, &s.top, &s.bottom}) *side = next();
    s.act = check_activation(next(), kOp, name.c_str());
    EFFNET_CHECK(s.stride >= 1, kOp, name, "stride >= 1", s.stride);
    EFFNET_CHECK(groups == expected_groups, kOp, name, "groups = " + std::to_string(expected_groups), groups);
    const int64_t least = std::min(std::min(s.left, s.right), std::min(s.top, s.bottom));
    EFFNET_CHECK(least >= 0, kOp, name, "padding 'same' or 4 numbers >= 0", least);
    return s;
  }

  // A 1x1 convolution.
  LayerSource pointwise(const std::string& name, int64_t channels, bool optional = false) {
    const LayerSource s = layer(name, 4, optional);
    // "same" pads a 1x1 kernel by nothing.
    const bool padded = !s.same && s.left + s.right + s.top + s.bottom > 0;
    EFFNET_CHECK(s.out == 0 || (s.in == channels && s.kernel == 1 && s.stride == 1 && !padded), kOp, name,
                 "a 1x1 convolution of " + std::to_string(channels) + " channels with stride 1 and no padding",
                 "weight ", text(s), ", stride ", s.stride, padded ? ", padding" : "");
    return s;
  }

  // A linear layer, or none.
  LayerSource linear(const std::string& name, int64_t inputs) {
    const LayerSource s = layer(name, 2, true);
    EFFNET_CHECK(s.out == 0 || s.in == inputs, kOp, name, "weight [O, " + std::to_string(inputs) + "]",
                 "[" + std::to_string(s.out) + ", " + std::to_string(s.in) + "]");
    return s;
  }

  void finish() const {
    EFFNET_CHECK(next_ == numbers_.size() && taken_ == weights_.size() && taken_ == biases_.size(), kOp, "description",
                 std::to_string(taken_) + " layers and " + std::to_string(next_) + " numbers", weights_.size(),
                 " weights, ", biases_.size(), " biases and ", numbers_.size(), " numbers");
  }

  static std::string text(const LayerSource& s) {
    const std::string kernel = std::to_string(s.kernel);
    return "[" + std::to_string(s.out) + ", " + std::to_string(s.in) + ", " + kernel + ", " + kernel + "]";
  }

 private:
  int64_t next() { return number(INT64_MIN, INT64_MAX); }

  const Tensor& dense(const Tensor& t) {
    kept_.push_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
    return kept_.back();
  }

  const std::vector<Tensor>& weights_;
  const std::vector<Tensor>& biases_;
  const std::vector<int64_t>& numbers_;
  size_t next_ = 0, taken_ = 0;
  std::vector<Tensor> kept_;
};

BlockSource read_block(Description& d, const std::string& name, int64_t channels) {
  BlockSource b{};
  b.expand = d.pointwise(name + ": expand", channels, true);
  const int64_t expanded = b.expand.out > 0 ? b.expand.out : channels;
  b.depthwise = d.layer(name + ": depthwise", 4, false, expanded);
  const int64_t kernel = b.depthwise.kernel;
  const std::string depthwise = name + ": depthwise";
  EFFNET_CHECK(b.depthwise.out == expanded && b.depthwise.in == 1, kOp, depthwise,
               "weight [" + std::to_string(expanded) + ", 1, k, k]", Description::text(b.depthwise));
  EFFNET_CHECK(is_kernel_size(kernel), kOp, depthwise, std::string("a kernel of ") + kKernelSizes, kernel);
  EFFNET_CHECK(b.depthwise.stride <= 2, kOp, depthwise, "stride 1 or 2", b.depthwise.stride);
  const std::string gate = name + ": squeeze_excite";
  b.squeeze = d.linear(gate, expanded);
  b.excite = d.linear(gate, b.squeeze.out);
  EFFNET_CHECK((b.squeeze.out > 0) == (b.excite.out > 0), kOp, gate, "both layers or none", "one");
  EFFNET_CHECK(b.excite.out == 0 || b.excite.out == expanded, kOp, gate, std::to_string(expanded) + " gates",
               b.excite.out);
  b.project = d.pointwise(name + ": project", expanded);
  b.residual = d.flag();
  EFFNET_CHECK(!b.residual || (b.depthwise.stride == 1 && b.project.out == channels), kOp, name + ": residual",
               "stride 1 and " + std::to_string(channels) + " output channels", "stride ", b.depthwise.stride, " and ",
               b.project.out);
  return b;
}

// All of the work of `packer`, by all threads.
Tensor pack(const Packer& packer) {
  Tensor memory = torch::stable::empty({packer.bytes()}, ScalarType::Byte, std::nullopt, kCpu);
  auto* bytes = static_cast<char*>(memory.mutable_data_ptr());
  prefer_huge_pages(bytes, packer.bytes());
  // What lies between the parts: a program has one form.
  std::memset(bytes, 0, packer.bytes());
  const std::vector<Packing> packings = packer.packings(bytes);
  NetworkPlan plan;
  plan.steps.push_back(pack_step(packings));
  run_plan(plan, static_cast<int64_t>(torch::stable::get_num_threads()), nullptr);
  return memory;
}

// `description`: the number of blocks, whether a mean over the image follows the head, and the layers: stem; of each
// block expand, depthwise, squeeze, excite, project and whether there is a residual; head; classifier. A layer takes a
// weight and a bias from the lists and the numbers stride, groups, same, left, right, top, bottom, act; where it may be
// missing (all but stem, depthwise and project) a flag stands before them.
std::tuple<Tensor, Tensor> network_compile(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                                           const std::vector<int64_t>& description, bool half) {
  Description d(weights, biases, description);
  Program program{};
  program.dtype = half ? StorageType::kBFloat16 : StorageType::kFloat32;
  const int64_t blocks = d.number(0, 4096);
  program.pool = d.flag();
  const LayerSource stem = d.layer("stem", 4);
  std::vector<BlockSource> sources;
  int64_t channels = stem.out;
  for (int64_t i = 0; i < blocks; ++i) {
    sources.push_back(read_block(d, "block " + std::to_string(i), channels));
    channels = sources.back().project.out;
  }
  const LayerSource head = d.pointwise("head", channels, true);
  const LayerSource classifier = d.linear("classifier", head.out);
  EFFNET_CHECK(classifier.out == 0 || program.pool, kOp, "classifier", "a mean over the image before it", "none");
  d.finish();

  Packer packer(program.dtype);
  program.stem = packer.conv(stem);
  if (head.out > 0) program.head = packer.conv(head);
  if (classifier.out > 0) program.classifier = packer.linear(classifier);
  for (const BlockSource& source : sources) program.blocks.push_back(packer.block(source));
  const std::vector<int64_t> numbers = to_numbers(program);
  Tensor record = torch::stable::empty({static_cast<int64_t>(numbers.size())}, ScalarType::Long, std::nullopt, kCpu);
  std::copy(numbers.begin(), numbers.end(), static_cast<int64_t*>(record.mutable_data_ptr()));
  return {record, pack(packer)};
}

}  // namespace
}  // namespace effnet::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CPU, m) {
  m.impl("network_compile", TORCH_BOX(&effnet::cpu::network_compile));
}
