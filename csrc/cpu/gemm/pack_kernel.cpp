// Weights and images into the kernels' order, for blocks whose weights were not packed before; compiled once per
// instruction set.
#include <algorithm>

#include "cpu/gemm/multiply.h"
#include "cpu/isa/storage.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

inline void put(float* to, float x) { *to = x; }
inline void put(BFloat16* to, float x) { *to = to_bfloat16(x); }

// One group of 16 outputs: element [k][i] comes from 16 rows that are read side by side.
template <class From, class To>
void pack_group(const Packing& p, int64_t group) {
  const Panels& panels = p.panels;
  const int64_t wide = panels.extra * (panels.base + 1);
  const int64_t panel =
      group < wide ? group / (panels.base + 1) : panels.extra + (group - wide) / std::max<int64_t>(panels.base, 1);
  const int64_t width = panels.width(panel) * kGroup, column = (group - panels.first(panel)) * kGroup;
  const int64_t step = p.together, depth = round_up(p.depth, step);
  To* to = static_cast<To*>(p.to) + panels.first(panel) * kGroup * p.packed_depth() + column * step;
  const From* rows[kGroup];
  // A factor of SiLU's unit rounds once, with the weight.
  double scales[kGroup];
  const int64_t count = p.from == nullptr ? 0 : std::min(kGroup, p.outputs - group * kGroup);
  for (int64_t i = 0; i < count; ++i) {
    rows[i] = static_cast<const From*>(p.from) + (group * kGroup + i) * p.row_stride;
    scales[i] = p.scale == nullptr ? p.factor : p.scale[group * kGroup + i] * p.factor;
  }
  for (int64_t k = 0; k < p.taps * depth; ++k) {
    const int64_t tap = p.taps == 1 ? 0 : k / depth, channel = k - tap * depth;
    const int64_t element = channel * p.taps + tap, valid = channel < p.depth ? count : 0;
    To* out = to + k / step * width * step + k % step;
    for (int64_t i = 0; i < valid; ++i) put(out + i * step, static_cast<float>(as_float(rows[i][element]) * scales[i]));
    for (int64_t i = valid; i < kGroup; ++i) put(out + i * step, 0.0f);
  }
}

// Pixels to groups of channels.
template <class From, class To>
void pack_pixels(const Packing& p, int64_t first, int64_t end) {
  const int64_t padded = round_up(p.depth, kGroup);
  for (int64_t pixel = first; pixel < end; ++pixel) {
    const From* from = static_cast<const From*>(p.from) + pixel * p.row_stride;
    To* to = static_cast<To*>(p.to) + pixel * padded;
    for (int64_t c = 0; c < padded; c += kLanes) {
      const int64_t count = std::clamp<int64_t>(p.depth - c, 0, kLanes);
      const Vec value = count == 0 ? Vec(0.0f) : load_lanes(from + c, static_cast<int>(count));
      store(to + c, value);
    }
  }
}

template <class From, class To>
void pack(const Packing& p, int64_t item) {
  if (p.image) {
    pack_pixels<From, To>(p, item * kPackedPixels, std::min((item + 1) * kPackedPixels, p.outputs));
  } else {
    pack_group<From, To>(p, item);
  }
}

}  // namespace

void pack_item(const Packing* p, int64_t item) {
  for (; item >= p->items; ++p) item -= p->items;
  with_storage(p->from_dtype, [&](auto from) {
    with_storage(p->to_dtype, [&](auto to) { pack<decltype(from), decltype(to)>(*p, item); });
  });
}

}  // namespace effnet::cpu::EFFNET_ISA
