// Runs the CUDA kernels on the CPU for a file of cases, and writes what they computed. Usage: runner CASES RESULTS
//
// A case is a line `name tensors integers...` followed by its tensors, each a line `bytes misalignment` (bytes = -1:
// none) and the bytes. A result is a line `count`, then for each output a line `bytes` and the bytes.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "depthwise_host.h"
#include "launch.cuh"
#include "squeeze_excite.h"

namespace {

using namespace effnet;
using namespace effnet::cuda;

// Memory of exactly the size asked for, at an address that is `misalignment` bytes past a 64-byte boundary.
class Buffer {
 public:
  Buffer() = default;
  Buffer(size_t bytes, size_t misalignment) : bytes_(bytes), offset_(misalignment) {
    const size_t whole = bytes + misalignment;
    memory_.reset(static_cast<unsigned char*>(whole == 0 ? nullptr : ::operator new(whole, std::align_val_t(64))));
    if (whole > 0) std::memset(memory_.get(), 0xff, whole);
    present_ = true;
  }
  template <class T = void>
  T* data() {
    return present_ ? reinterpret_cast<T*>(memory_.get() + offset_) : nullptr;
  }
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(unsigned char* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::unique_ptr<unsigned char, Free> memory_;
  size_t bytes_ = 0, offset_ = 0;
  bool present_ = false;
};

struct Case {
  std::string name;
  std::vector<int64_t> integers;
  std::vector<Buffer> tensors;
  size_t next_integer = 0, next_tensor = 0;

  int64_t integer() { return integers.at(next_integer++); }
  int small() { return static_cast<int>(integer()); }
  template <class T = void>
  T* tensor() {
    return tensors.at(next_tensor++).data<T>();
  }
};

void check(cudaError_t error, const Case& c) {
  if (error == cudaSuccess) return;
  std::cerr << "runner: " << c.name << ": launch failed with error " << error << "\n";
  std::exit(3);
}

// A record's tensors, which follow one another in a case.
struct RecordOfCase {
  Case& c;

  void image(const void*& to, const char* /*name*/, bool /*required*/ = false) { to = c.tensor(); }
  void channels(const float*& to, const char* /*name*/) { to = c.tensor<float>(); }
  void images(const float*& to, const char* /*name*/) { to = c.tensor<float>(); }
  void images_channels(const float*& to, const char* /*name*/) { to = c.tensor<float>(); }
};

DepthwiseShape shape_of(Case& c) {
  DepthwiseShape s{};
  s.batch = c.small();
  s.channels = c.small();
  s.height = c.small();
  s.width = c.small();
  s.out_height = c.small();
  s.out_width = c.small();
  s.kernel = c.small();
  s.stride = c.small();
  s.left = c.small();
  s.top = c.small();
  return s;
}

DepthwisePlan plan_of(const PlannerRequest& request, int64_t index, const Case& c) {
  DeviceLimits limits{};
  check(device_limits(&limits), c);
  DepthwisePlan plan{};
  if (!choose_plan(request, limits, index, &plan)) {
    std::cerr << "runner: " << c.name << ": no plan " << index << "\n";
    std::exit(4);
  }
  return plan;
}

std::vector<Buffer> depthwise_forward_case(Case& c) {
  DepthwiseForwardParams p{};
  p.shape = shape_of(c);
  const auto type = static_cast<StorageType>(c.integer());
  p.in_act = static_cast<Activation>(c.integer());
  p.act = static_cast<Activation>(c.integer());
  const bool pool = c.integer() != 0, stats = c.integer() != 0;
  p.plan = plan_of(forward_request(p.shape, type), c.integer(), c);
  const int64_t misalignment = c.integer();
  p.x = c.tensor();
  p.weight = c.tensor();
  p.wide_weight = c.integer() != 0;
  p.in_scale = c.tensor<float>();
  p.in_shift = c.tensor<float>();
  for (ChannelVector* vector : {&p.scale, &p.shift, &p.mean, &p.var}) {
    *vector = {c.tensor(), static_cast<StorageType>(c.integer())};
  }
  p.eps = static_cast<float>(c.integer()) * 1e-6f;

  const int64_t outputs =
      static_cast<int64_t>(p.shape.batch) * p.shape.out_height * p.shape.out_width * p.shape.channels;
  const int64_t vectors = static_cast<int64_t>(p.shape.batch) * p.shape.channels;
  std::vector<Buffer> results;
  results.emplace_back(outputs * static_cast<int>(bytes_of(type)), misalignment);
  results.emplace_back(pool ? p.plan.tiles() * vectors * 4 : 0, 0);
  results.emplace_back(stats ? p.plan.partial_rows() * 3 * p.shape.channels * 4 : 0, 0);
  p.y = results[0].data();
  p.pooled = pool ? results[1].data<float>() : nullptr;
  p.stats = stats ? results[2].data<float>() : nullptr;
  check(depthwise_forward(p, type, nullptr), c);
  return results;
}

std::vector<Buffer> depthwise_backward_case(Case& c) {
  DepthwiseBackwardParams p{};
  p.shape = shape_of(c);
  const auto type = static_cast<StorageType>(c.integer());
  p.incoming.act = static_cast<Activation>(c.integer());
  p.source.act = static_cast<Activation>(c.integer());
  const bool need_dx = c.integer() != 0, need_dw = c.integer() != 0, sums = c.integer() != 0;
  const int64_t index = c.integer(), misalignment = c.integer();
  RecordOfCase record{c};
  p.incoming.each(record);
  p.source.each(record);
  p.weight = c.tensor();
  p.residual = c.tensor();
  p.plan = plan_of(backward_request(p.shape, type, need_dx, need_dw, p.incoming.z != nullptr), index, c);

  const int64_t taps = static_cast<int64_t>(p.shape.kernel) * p.shape.kernel;
  const int64_t rows = p.plan.partial_rows();
  const int64_t inputs = static_cast<int64_t>(p.shape.batch) * p.shape.height * p.shape.width * p.shape.channels;
  std::vector<Buffer> results;
  results.emplace_back(need_dx ? inputs * static_cast<int>(bytes_of(type)) : 0, misalignment);
  results.emplace_back(need_dw ? taps * p.shape.channels * 4 : 0, 0);
  results.emplace_back(sums ? rows * 2 * p.shape.channels * 4 : 0, 0);
  Buffer partials(rows * taps * p.shape.channels * 4, 0);
  p.dx = need_dx ? results[0].data() : nullptr;
  p.dweight = need_dw ? partials.data<float>() : nullptr;
  p.sums = sums ? results[2].data<float>() : nullptr;
  check(depthwise_backward(p, type, nullptr), c);
  if (need_dw) check(merge_rows(p.dweight, results[1].data<float>(), rows, taps, p.shape.channels, nullptr), c);
  return results;
}

SqueezeExciteParams squeeze_excite_params(Case& c) {
  SqueezeExciteParams p{};
  p.images = c.integer();
  p.parts = c.small();
  p.channels = c.small();
  p.reduced = c.small();
  p.act = static_cast<Activation>(c.integer());
  p.gate_act = static_cast<Activation>(c.integer());
  p.pooled = c.tensor<float>();
  p.w1 = c.tensor();
  p.b1 = c.tensor();
  p.w2 = c.tensor();
  p.b2 = c.tensor();
  return p;
}

std::vector<Buffer> squeeze_excite_case(Case& c) {
  SqueezeExciteParams p = squeeze_excite_params(c);
  std::vector<Buffer> results;
  results.emplace_back(p.images * p.channels * 4, 0);
  p.gate = results[0].data<float>();
  check(squeeze_excite_forward(p, static_cast<StorageType>(c.integer()), nullptr), c);
  return results;
}

std::vector<Buffer> squeeze_excite_backward_case(Case& c) {
  SqueezeExciteBackwardParams p{};
  p.forward = squeeze_excite_params(c);
  p.dgate_parts = c.small();
  p.pool_factor = 1.0f / static_cast<float>(c.integer());
  p.dgate = c.tensor<float>();
  const int64_t n = p.forward.images, channels = p.forward.channels, reduced = p.forward.reduced;
  std::vector<Buffer> results;
  const auto type = static_cast<StorageType>(c.integer());
  const int64_t element = type == StorageType::kFloat32 ? 4 : 2;
  results.emplace_back(n * channels * 4, 0);
  for (const int64_t size : {reduced * channels, reduced, channels * reduced, channels}) {
    results.emplace_back(size * element, 0);
  }
  p.dpooled = results[0].data<float>();
  p.dw1 = results[1].data();
  p.db1 = p.forward.b1 == nullptr ? nullptr : results[2].data();
  p.dw2 = results[3].data();
  p.db2 = p.forward.b2 == nullptr ? nullptr : results[4].data();
  Buffer hidden(n * reduced * 4, 0), dn1(n * reduced * 4, 0), dn2(n * channels * 4, 0);
  p.hidden = hidden.data<float>();
  p.dn1 = dn1.data<float>();
  p.dn2 = dn2.data<float>();
  check(squeeze_excite_backward(p, type, nullptr), c);
  return results;
}

// The number of candidates the planner has for a case's shape.
std::vector<Buffer> count_plans_case(Case& c) {
  const DepthwiseShape shape = shape_of(c);
  const auto type = static_cast<StorageType>(c.integer());
  const bool backward = c.integer() != 0;
  const bool need_dx = c.integer() != 0, need_dw = c.integer() != 0, has_z = c.integer() != 0;
  DeviceLimits limits{};
  check(device_limits(&limits), c);
  std::vector<Buffer> results;
  results.emplace_back(8, 0);
  int64_t* count = results[0].data<int64_t>();
  *count = 0;
  for_each_plan(backward ? backward_request(shape, type, need_dx, need_dw, has_z) : forward_request(shape, type),
                limits, [&](const DepthwisePlan&) { ++*count; });
  return results;
}

std::vector<Buffer> run(Case& c) {
  if (c.name == "depthwise") return depthwise_forward_case(c);
  if (c.name == "depthwise_backward") return depthwise_backward_case(c);
  if (c.name == "squeeze_excite") return squeeze_excite_case(c);
  if (c.name == "squeeze_excite_backward") return squeeze_excite_backward_case(c);
  if (c.name == "count_plans") return count_plans_case(c);
  std::cerr << "runner: unknown case " << c.name << "\n";
  std::exit(2);
}

bool read_case(std::istream& in, Case* c) {
  std::string line;
  if (!std::getline(in, line)) return false;
  std::istringstream words(line);
  size_t tensors = 0;
  words >> c->name >> tensors;
  for (int64_t value; words >> value;) c->integers.push_back(value);
  for (size_t i = 0; i < tensors; ++i) {
    std::getline(in, line);
    int64_t bytes = 0, misalignment = 0;
    std::istringstream(line) >> bytes >> misalignment;
    if (bytes < 0) {
      c->tensors.emplace_back();
      continue;
    }
    c->tensors.emplace_back(static_cast<size_t>(bytes), static_cast<size_t>(misalignment));
    in.read(c->tensors.back().data<char>(), bytes);
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: runner CASES RESULTS\n";
    return 2;
  }
  std::ifstream in(argv[1], std::ios::binary);
  std::ofstream out(argv[2], std::ios::binary);
  for (Case c; read_case(in, &c); c = Case{}) {
    std::vector<Buffer> results = run(c);
    out << results.size() << "\n";
    for (Buffer& result : results) {
      out << result.bytes() << "\n";
      out.write(result.data<char>(), static_cast<std::streamsize>(result.bytes()));
    }
  }
  return 0;
}
