// Channel sums of training, tile by tile, and the elementwise formula of BatchNorm's backward; compiled once per
// instruction set.
#include "cpu/isa/storage.h"
#include "cpu/passes/channel_sums.h"
#include "cpu/passes/moments.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

// Where one task reads and writes.
template <class T>
struct Band {
  const T* dy;
  const T* z;
  T* out;
  const float* gate;
  Vec row_scale;
  int64_t first_row, last_row;

  Band(const TrainingParams& p, int64_t task) {
    const int64_t image = task / p.plan.bands;
    const int64_t offset = image * p.rows * p.channels;
    dy = p.dy == nullptr ? nullptr : static_cast<const T*>(p.dy) + offset;
    z = static_cast<const T*>(p.z) + offset;
    out = p.out == nullptr ? nullptr : static_cast<T*>(p.out) + offset;
    gate = p.gate == nullptr ? nullptr : p.gate + image * p.channels;
    row_scale = Vec(p.row_scale == nullptr ? 1.0f : p.row_scale[image]);
    first_row = task % p.plan.bands * p.plan.band_rows;
    last_row = std::min(first_row + p.plan.band_rows, p.rows);
  }
};

template <class T>
void channel_stats(const TrainingParams& p, int64_t task) {
  const Band<T> band(p, task);
  float* partial = p.partial + task * 3 * p.channels;
  std::fill_n(partial, p.channels, static_cast<float>(band.last_row - band.first_row));
  std::fill_n(partial + p.channels, 2 * p.channels, 0.0f);
  for_tiles(band.first_row, band.last_row, p.channels, [&](int64_t row, int64_t end, int64_t c, int count) {
    const Moments tile = moments_of(band.z + row * p.channels + c, p.channels, end - row, count);
    merge_moments(tile, static_cast<float>(row - band.first_row), partial + p.channels + c,
                  partial + 2 * p.channels + c, count);
  });
}

template <class T, Activation kAct>
void batch_norm_reduce(const TrainingParams& p, int64_t task) {
  const Band<T> band(p, task);
  float* partial = p.partial + task * 2 * p.channels;
  std::fill_n(partial, 2 * p.channels, 0.0f);
  for_tiles(band.first_row, band.last_row, p.channels, [&](int64_t first, int64_t end, int64_t c, int count) {
    const Vec mean = load_lanes(p.mean + c, count), invstd = load_lanes(p.invstd + c, count);
    const Vec scale = vector_or(p.scale, c, count, 1.0f), shift = vector_or(p.shift, c, count, 0.0f);
    Vec total[2];
    sum_rows(first, end, total, [&](Vec(&sums)[2], int64_t row) {
      const int64_t at = row * p.channels + c;
      fetch_ahead(band.dy + at);
      fetch_ahead(band.z + at);
      const Vec z = load_lanes(band.z + at, count);
      Vec g = load_lanes(band.dy + at, count) * band.row_scale;
      if constexpr (kAct != Activation::kNone) g = g * quick_activate_grad<kAct>(multiply_add(z, scale, shift));
      sums[0] = sums[0] + g;
      sums[1] = multiply_add(g, (z - mean) * invstd, sums[1]);
    });
    add_sums(total, partial, p.channels, c, count);
  });
}

template <class T, Activation kAct>
void batch_norm_input_grad(const TrainingParams& p, int64_t task) {
  const Band<T> band(p, task);
  for (int64_t row = band.first_row; row < band.last_row; ++row) {
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      const int count = lanes_left(p.channels, c);
      const int64_t at = row * p.channels + c;
      const Vec z = load_lanes(band.z + at, count);
      const Vec centred = z - load_lanes(p.mean + c, count);
      const Vec rest = multiply_add(centred, load_lanes(p.b + c, count), load_lanes(p.c + c, count));
      Vec g = load_lanes(band.dy + at, count) * band.row_scale;
      if constexpr (kAct != Activation::kNone) {
        const Vec scale = vector_or(p.scale, c, count, 1.0f), shift = vector_or(p.shift, c, count, 0.0f);
        g = g * quick_activate_grad<kAct>(multiply_add(z, scale, shift));
      }
      store_lanes(band.out + at, multiply_add(g, load_lanes(p.a + c, count), rest), count);
    }
  }
}

template <class T, Activation kAct>
void gate_and_norm_sums(const TrainingParams& p, int64_t task) {
  const Band<T> band(p, task);
  float* partial = p.partial + task * 5 * p.channels;
  std::fill_n(partial, 5 * p.channels, 0.0f);
  for_tiles(band.first_row, band.last_row, p.channels, [&](int64_t first, int64_t end, int64_t c, int count) {
    const Vec scale = load_lanes(p.scale + c, count), shift = load_lanes(p.shift + c, count);
    const Vec mean = load_lanes(p.mean + c, count), invstd = load_lanes(p.invstd + c, count);
    const Vec gate = vector_or(band.gate, c, count, 1.0f);
    Vec total[5];
    sum_rows(first, end, total, [&](Vec(&sums)[5], int64_t row) {
      const int64_t at = row * p.channels + c;
      fetch_ahead(band.dy + at);
      fetch_ahead(band.z + at);
      const Vec z = load_lanes(band.z + at, count);
      const Vec g = load_lanes(band.dy + at, count);
      const ValueAndGrad act = add_gate_and_norm<kAct>(g, z, scale, shift, mean, invstd, sums);
      if (band.out != nullptr) store_lanes(band.out + at, act.value * gate, count);
    });
    add_sums(total, partial, p.channels, c, count);
  });
}

// f(task, zero of the storage type) for every task.
template <class F>
inline void for_tasks(const TrainingParams& p, int64_t begin, int64_t end, F f) {
  for (int64_t task = begin; task < end; ++task) {
    with_storage(p.dtype, [&](auto stored) { f(task, stored); });
  }
}

}  // namespace

void channel_stats_tasks(const TrainingParams& p, int64_t begin, int64_t end) {
  for_tasks(p, begin, end, [&](int64_t task, auto zero) { channel_stats<decltype(zero)>(p, task); });
}

void batch_norm_reduce_tasks(const TrainingParams& p, int64_t begin, int64_t end) {
  with_activation(p.act, [&](auto act) {
    for_tasks(p, begin, end, [&](int64_t task, auto zero) { batch_norm_reduce<decltype(zero), act.value>(p, task); });
  });
}

void batch_norm_input_grad_tasks(const TrainingParams& p, int64_t begin, int64_t end) {
  with_activation(p.act, [&](auto act) {
    for_tasks(p, begin, end,
              [&](int64_t task, auto zero) { batch_norm_input_grad<decltype(zero), act.value>(p, task); });
  });
}

void gate_and_norm_sums_tasks(const TrainingParams& p, int64_t begin, int64_t end) {
  with_activation(p.act, [&](auto act) {
    for_tasks(p, begin, end, [&](int64_t task, auto zero) { gate_and_norm_sums<decltype(zero), act.value>(p, task); });
  });
}

}  // namespace effnet::cpu::EFFNET_ISA
