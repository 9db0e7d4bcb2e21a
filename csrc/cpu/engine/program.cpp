#include "cpu/engine/program.h"

#include "common/kernel_size.h"

namespace effnet::cpu {
namespace {

// Sizes beyond this are no sizes; products of three of them fit 64 bits.
constexpr int64_t kMostSize = 1 << 20;
constexpr int64_t kMostBytes = int64_t{1} << 40;
constexpr int64_t kMostBlocks = 4096;

// The order of the numbers, once for both directions: `codec` writes or reads each field, with the range it must lie
// in.
template <class Codec>
void visit(Codec& codec, ConvRecord& conv) {
  codec.field(conv.in, 0, kMostSize), codec.field(conv.out, 0, kMostSize);
  codec.field(conv.kernel, 0, kMostSize), codec.field(conv.stride, conv.out > 0 ? 1 : 0, kMostSize);
  codec.field(conv.same, 0, 1);
  for (int64_t* side : {&conv.left, &conv.right, &conv.top, &conv.bottom}) codec.field(*side, 0, kMostSize);
  codec.field(conv.act, 0, kActivationCount - 1);
  codec.field(conv.weight, 0, kMostBytes), codec.field(conv.bias, 0, kMostBytes);
}

template <class Codec>
void visit(Codec& codec, LinearRecord& linear) {
  codec.field(linear.in, 0, kMostSize), codec.field(linear.out, 0, kMostSize);
  codec.field(linear.act, 0, kActivationCount - 1);
  codec.field(linear.weight, 0, kMostBytes), codec.field(linear.bias, 0, kMostBytes);
}

template <class Codec>
void visit(Codec& codec, Program& program) {
  codec.field(program.dtype, 0, kStorageTypes - 1);
  codec.field(program.pool, 0, 1);
  auto blocks = static_cast<int64_t>(program.blocks.size());
  codec.field(blocks, 0, kMostBlocks);
  program.blocks.resize(blocks);
  visit(codec, program.stem), visit(codec, program.head), visit(codec, program.classifier);
  for (BlockRecord& block : program.blocks) {
    visit(codec, block.expand), visit(codec, block.depthwise);
    visit(codec, block.squeeze), visit(codec, block.excite);
    visit(codec, block.project);
    codec.field(block.residual, 0, 1);
  }
}

struct Writer {
  std::vector<int64_t> numbers;

  template <class T>
  void field(const T& value, int64_t, int64_t) {
    numbers.push_back(static_cast<int64_t>(value));
  }
};

struct Reader {
  const int64_t* numbers;
  int64_t count, taken = 0;
  bool good = true;

  template <class T>
  void field(T& value, int64_t least, int64_t most) {
    const int64_t number = taken < count ? numbers[taken] : least - 1;
    ++taken;
    good = good && least <= number && number <= most;
    value = static_cast<T>(good ? number : least);
  }
};

// The layers follow one another; that their weights are there is checked against the plan of a call.
bool is_network(const Program& program) {
  int64_t channels = program.stem.out;
  if (program.dtype == StorageType::kFloat16) return false;
  if (program.stem.in < 1 || channels < 1 || program.stem.kernel < 1) return false;
  for (const BlockRecord& b : program.blocks) {
    const int64_t expanded = b.expand.out > 0 ? b.expand.out : channels;
    const int64_t kernel = b.depthwise.kernel;
    if (b.expand.out > 0 && b.expand.in != channels) return false;
    if (b.depthwise.out != expanded || !is_kernel_size(kernel) || b.depthwise.stride > 2) return false;
    const bool gated = b.squeeze.out > 0;
    if (gated && (b.squeeze.in != expanded || b.excite.in != b.squeeze.out || b.excite.out != expanded)) return false;
    if (b.project.in != expanded || b.project.out < 1) return false;
    if (b.residual && (b.depthwise.stride != 1 || b.project.out != channels)) return false;
    channels = b.project.out;
  }
  if (program.head.out == 0) return program.classifier.out == 0;
  return program.head.in == channels && (program.classifier.out == 0 || program.classifier.in == program.head.out);
}

}  // namespace

std::vector<int64_t> to_numbers(Program program) {
  Writer writer{{kProgramFormat}};
  visit(writer, program);
  return std::move(writer.numbers);
}

Program from_numbers(const int64_t* numbers, int64_t count, std::string* wrong) {
  Program program{};
  const int64_t format = count > 0 ? numbers[0] : 0;
  if (format != kProgramFormat) {
    *wrong = "format " + std::to_string(format);
    return program;
  }
  Reader reader{numbers + 1, count - 1};
  visit(reader, program);
  if (!reader.good || reader.taken != count - 1 || !is_network(program)) {
    *wrong = std::to_string(count) + " numbers that are no network";
  }
  return program;
}

}  // namespace effnet::cpu
