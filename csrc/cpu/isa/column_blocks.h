// A row's columns in blocks whose length the compiler knows; compiled once per instruction set.
#pragma once

#include <cstdint>
#include <type_traits>

namespace effnet::cpu::EFFNET_ISA {

// Calls visit(first column, number of columns as a constant) for blocks of nearly equal length, at most kMost: 12
// columns are 6 + 6 rather than 8 + 4.
template <int kMost, class Visit>
inline __attribute__((always_inline)) void for_column_blocks(int64_t columns, const Visit& visit) {
  static_assert(kMost == 8, "as many as there are cases");
  const int64_t blocks = (columns + kMost - 1) / kMost;
  int64_t column = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t end = (block + 1) * columns / blocks;
    switch (end - column) {
#define EFFNET_COLUMNS(n)                            \
  case n:                                            \
    visit(column, std::integral_constant<int, n>{}); \
    break;
      EFFNET_COLUMNS(1)
      EFFNET_COLUMNS(2)
      EFFNET_COLUMNS(3)
      EFFNET_COLUMNS(4)
      EFFNET_COLUMNS(5)
      EFFNET_COLUMNS(6)
      EFFNET_COLUMNS(7)
      EFFNET_COLUMNS(8)
#undef EFFNET_COLUMNS
    }
    column = end;
  }
}

}  // namespace effnet::cpu::EFFNET_ISA
