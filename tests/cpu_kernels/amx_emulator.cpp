// AMX on a processor without it: the tile instructions raise SIGILL there, and the handler here does what Intel's
// manual (volume 2, "Intel AMX Instruction Reference") says they do. So the machine code that ships is what is tested.
// What the processor would refuse ends the process with a message.
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <atomic>

namespace {

struct Tile {
  int rows, bytes;  // bytes of a row
  alignas(64) uint8_t data[16][64];
};

struct State {
  bool in_use;
  Tile tiles[8];
};

thread_local State state;
std::atomic<long> products{0};
std::atomic<long> threads{0};  // whose tiles are in use
struct sigaction previous;

void refuse(const char* why) {
  fprintf(stderr, "AMX emulator: %s\n", why);
  abort();
}

void leave() {
  if (state.in_use) --threads;
  memset(static_cast<void*>(&state), 0, sizeof state);
}

void load_config(const uint8_t* config) {
  leave();
  if (config[0] == 0) return;
  if (config[0] != 1 || config[1] != 0) refuse("ldtilecfg: palette or start_row");
  for (int i = 2; i < 16; ++i) {
    if (config[i] != 0) refuse("ldtilecfg: reserved bytes");
  }
  for (int i = 0; i < 16; ++i) {
    uint16_t bytes;
    memcpy(&bytes, config + 16 + 2 * i, 2);
    const int rows = config[48 + i];
    if ((rows == 0) != (bytes == 0) || rows > 16 || bytes > 64) refuse("ldtilecfg: rows or bytes of a row");
    if (i >= 8 && rows != 0) refuse("ldtilecfg: more than 8 tiles");
    if (i < 8) state.tiles[i].rows = rows, state.tiles[i].bytes = bytes;
  }
  state.in_use = true;
  ++threads;
}

Tile& used(int index) {
  if (!state.in_use || state.tiles[index].rows == 0) refuse("a tile that is not configured");
  return state.tiles[index];
}

// DAZ = FTZ = 1.
inline float flush(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits &= (bits & 0x7f800000u) != 0 ? 0xffffffffu : 0x80000000u;
  memcpy(&x, &bits, 4);
  return x;
}

inline float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return flush(value);
}

#if defined(__SANITIZE_ADDRESS__)
#define FAST
#else
#define FAST __attribute__((target_clones("arch=haswell", "default"), optimize("O3")))
#endif

// One row of TDPBF16PS: even and odd elements of K are summed apart.
FAST void multiply_row(const uint16_t* a, const uint16_t (*b)[32], int pairs, int columns, float* sums) {
  float both[32] = {};
  for (int k = 0; k < pairs; ++k) {
    const float factors[2] = {widen(a[2 * k]), widen(a[2 * k + 1])};
    for (int i = 0; i < 32; ++i) both[i] = flush(__builtin_fmaf(factors[i % 2], widen(b[k][i]), both[i]));
  }
  for (int n = 0; n < columns; ++n) sums[n] = flush(flush(sums[n]) + flush(both[2 * n] + both[2 * n + 1]));
}

void multiply(int sum, int first, int second) {
  Tile &c = used(sum), &a = used(first), &b = used(second);
  if (sum == first || sum == second || first == second) refuse("tdpbf16ps: a tile twice");
  if (a.bytes % 4 != 0 || b.bytes % 4 != 0 || c.bytes % 4 != 0) refuse("tdpbf16ps: bytes not a multiple of 4");
  if (c.rows != a.rows || c.bytes != b.bytes || a.bytes / 4 != b.rows) refuse("tdpbf16ps: tiles don't fit");
  ++products;
  alignas(64) uint16_t b_rows[16][32];
  memcpy(b_rows, b.data, sizeof b_rows);
  for (int m = 0; m < c.rows; ++m) {
    uint16_t row[32];
    float sums[16];
    memcpy(row, a.data[m], 64);
    memcpy(sums, c.data[m], 64);
    multiply_row(row, b_rows, b.rows, c.bytes / 4, sums);
    memcpy(c.data[m], sums, 64);
  }
}

// An instruction with a VEX prefix of three bytes.
struct Decoded {
  const uint8_t* next;
  int prefix, opcode, mod, reg, rm, vvvv;
  uint64_t address, stride;
};

uint64_t general(const ucontext_t* context, int number) {
  constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<uint64_t>(context->uc_mcontext.gregs[kOrder[number]]);
}

bool decode(const ucontext_t* context, Decoded* d) {
  const uint8_t* at = reinterpret_cast<const uint8_t*>(context->uc_mcontext.gregs[REG_RIP]);
  // 0F38, W = 0, L = 0.
  if (at[0] != 0xc4 || (at[1] & 0x1f) != 2 || (at[2] & 0x84) != 0) return false;
  d->prefix = at[2] & 3, d->vvvv = ~(at[2] >> 3) & 15, d->opcode = at[3];
  d->mod = at[4] >> 6, d->reg = (at[4] >> 3 & 7) | ((at[1] & 0x80) == 0 ? 8 : 0);
  const int high_index = (at[1] & 0x40) == 0 ? 8 : 0, high_base = (at[1] & 0x20) == 0 ? 8 : 0;
  d->rm = (at[4] & 7) | high_base, d->address = d->stride = 0;
  at += 5;
  if (d->mod != 3) {
    int base = d->rm;
    bool relative = d->mod == 0 && (d->rm & 7) == 5, no_base = false;
    if ((d->rm & 7) == 4) {
      const int sib = *at++, index = (sib >> 3 & 7) | high_index;
      base = (sib & 7) | high_base, relative = false, no_base = d->mod == 0 && (base & 7) == 5;
      if (index != 4) d->stride = general(context, index) << (sib >> 6);
    }
    int32_t offset = 0;
    if (d->mod == 1) {
      offset = static_cast<int8_t>(*at++);
    } else if (d->mod == 2 || relative || no_base) {
      memcpy(&offset, at, 4);
      at += 4;
    }
    const uint64_t from = relative ? reinterpret_cast<uint64_t>(at) : no_base ? 0 : general(context, base);
    d->address = from + static_cast<uint64_t>(static_cast<int64_t>(offset));
  }
  d->next = at;
  return true;
}

bool execute(const Decoded& d) {
  enum { kNone = 0, kF3 = 2, kF2 = 3 };
  const bool memory = d.mod != 3;
  if (d.opcode == 0x49 && d.prefix == kNone && memory && d.reg == 0) {
    load_config(reinterpret_cast<const uint8_t*>(d.address + d.stride));
  } else if (d.opcode == 0x49 && d.prefix == kNone && !memory && d.reg == 0 && d.rm == 0) {
    leave();
  } else if (d.opcode == 0x49 && d.prefix == kF2 && !memory) {
    memset(used(d.reg).data, 0, sizeof(Tile::data));
  } else if (d.opcode == 0x4b && (d.prefix == kF2 || d.prefix == kF3) && memory) {
    Tile& tile = used(d.reg);
    if (d.prefix == kF2) memset(tile.data, 0, sizeof tile.data);
    for (int row = 0; row < tile.rows; ++row) {
      uint8_t* at = reinterpret_cast<uint8_t*>(d.address + static_cast<uint64_t>(row) * d.stride);
      if (d.prefix == kF2) {
        memcpy(tile.data[row], at, static_cast<size_t>(tile.bytes));
      } else {
        memcpy(at, tile.data[row], static_cast<size_t>(tile.bytes));
      }
    }
  } else if (d.opcode == 0x5c && d.prefix == kF3 && !memory) {
    multiply(d.reg, d.rm, d.vvvv);
  } else {
    return false;
  }
  return true;
}

void on_illegal_instruction(int, siginfo_t*, void* where) {
  auto* context = static_cast<ucontext_t*>(where);
  Decoded decoded;
  if (decode(context, &decoded) && execute(decoded)) {
    context->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(decoded.next);
    return;
  }
  // Not for us: it happens again, for whoever was there before.
  sigaction(SIGILL, &previous, nullptr);
}

}  // namespace

extern "C" void amx_emulate() {
  struct sigaction action = {};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, &previous);
}

// Multiplications of tiles so far, and threads that have not released theirs.
extern "C" long amx_products() { return products; }
extern "C" long amx_threads() { return threads; }
