// What belongs together among the arguments of the kernels' backwards, as plain data that the parameters of CPU and
// CUDA hold. Python hands a record over as a list of tensors (effnet_fast/records.py): `each` is that list's order,
// with the names that errors use. Null is a part left out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "activation.h"

namespace effnet {

// What a convolution read in its forward: gate * act(scale * x + shift).
struct Source {
  const void* x;                    // [batch, height, width, channels]
  const float *scale, *shift;       // [channels]
  const float* gate;                // [batch, channels]; of pointwise alone
  const float *norm_mean, *invstd;  // [channels], for the sums behind an affine
  Activation act;

  static constexpr const char* kName = "source";
  template <class Visitor>
  void each(Visitor& visit) {
    visit.image(x, "source.x", true);
    visit.channels(scale, "source.affine");
    visit.channels(shift, "source.affine");
    visit.images_channels(gate, "source.gate");
    visit.channels(norm_mean, "source.norm");
    visit.channels(invstd, "source.norm");
  }
};

// A BatchNorm's backward: dz = a * g + b * (z - mean) + c.
struct BatchNormGrad {
  const float *a, *b, *c, *mean;  // [channels] each, or all null for dz = g

  template <class Visitor>
  void each(Visitor& visit) {
    for (const float** vector : {&a, &b, &c, &mean}) visit.channels(*vector, "incoming.grad");
  }
};

// What comes to a depthwise convolution from behind: g = (dy * gate + pool_grad) * act'(scale * z + shift), dz by
// `grad`.
struct DepthwiseIncoming {
  const void *dy, *z;             // [batch, out_height, out_width, channels]
  const float *scale, *shift;     // [channels]
  const float *gate, *pool_grad;  // [batch, channels]
  BatchNormGrad grad;
  Activation act;

  static constexpr const char* kName = "incoming";
  template <class Visitor>
  void each(Visitor& visit) {
    visit.image(dy, "incoming.dy", true);
    visit.image(z, "incoming.z");
    visit.channels(scale, "incoming.affine");
    visit.channels(shift, "incoming.affine");
    visit.images_channels(gate, "incoming.gate");
    visit.images_channels(pool_grad, "incoming.pool_grad");
    grad.each(visit);
  }
};

// What comes to a 1x1 convolution from behind: g = row_scale * dy, dz by `grad`.
struct PointwiseIncoming {
  const void *dy, *z;  // [batch, height, width, channels]
  BatchNormGrad grad;
  const float* row_scale;  // [batch]

  static constexpr const char* kName = "incoming";
  template <class Visitor>
  void each(Visitor& visit) {
    visit.image(dy, "incoming.dy", true);
    visit.image(z, "incoming.z");
    grad.each(visit);
    visit.images(row_scale, "incoming.row_scale");
  }
};

// Whether a tensor has this shape; its text is made where it has not.
template <class Tensor, class Shape>
bool has_shape(const Tensor& t, const Shape& shape) {
  if (t.dim() != static_cast<int64_t>(shape.size())) return false;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (t.size(static_cast<int64_t>(i)) != shape[i]) return false;
  }
  return true;
}

struct RecordSize {
  size_t tensors = 0;

  void image(const void*& /*to*/, const char* /*name*/, bool /*required*/ = false) { ++tensors; }
  void channels(const float*& /*to*/, const char* /*name*/) { ++tensors; }
  void images(const float*& /*to*/, const char* /*name*/) { ++tensors; }
  void images_channels(const float*& /*to*/, const char* /*name*/) { ++tensors; }
};

// `Operands` makes a pointer of a tensor that may be missing, after checking it, and keeps alive what it points at:
// `image` and `vector` take the tensor, its name and its shape; `fail` the argument, what was expected and what came.
template <class Operands, class List, class Shape>
struct RecordReader {
  Operands& operands;
  const List& tensors;
  const Shape& all;
  const Shape per_channel, per_image, per_image_channel;
  size_t next = 0;

  RecordReader(Operands& operands, const List& tensors, const Shape& shape)
      : operands(operands),
        tensors(tensors),
        all(shape),
        per_channel({shape[1]}),
        per_image({shape[0]}),
        per_image_channel({shape[0], shape[1]}) {}

  void image(const void*& to, const char* name, bool required = false) {
    if (required && !tensors[next].has_value()) operands.fail(name, "a tensor", "None");
    to = operands.image(tensors[next++], name, all);
  }
  void channels(const float*& to, const char* name) { to = operands.vector(tensors[next++], name, per_channel); }
  void images(const float*& to, const char* name) { to = operands.vector(tensors[next++], name, per_image); }
  void images_channels(const float*& to, const char* name) {
    to = operands.vector(tensors[next++], name, per_image_channel);
  }
};

// Fills a record from its list; `shape` is that of its images, [N, C, H, W].
template <class Record, class Operands, class List, class Shape>
void read_record(Record& record, Operands& operands, const List& tensors, const Shape& shape) {
  RecordSize size;
  record.each(size);
  if (tensors.size() != size.tensors) {
    operands.fail(Record::kName, std::to_string(size.tensors) + " tensors", std::to_string(tensors.size()));
  }
  RecordReader<Operands, List, Shape> reader(operands, tensors, shape);
  record.each(reader);
}

// The tensor whose shape and dtype the others follow, which its record begins with.
template <class Fail, class List>
const auto& leading_tensor(const Fail& operands, const List& tensors, const char* name) {
  if (tensors.empty() || !tensors[0].has_value()) operands.fail(name, "a tensor", "None");
  return *tensors[0];
}

}  // namespace effnet
