#include "emulate_x86.h"

#if !defined(__x86_64__) || !defined(__linux__)
namespace fusedlstm_tests {
bool can_emulate() { return false; }
void emulate_missing_instructions() {}
long emulated_instructions() { return 0; }
}  // namespace fusedlstm_tests
#else

#include <cpuid.h>
#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace fusedlstm_tests {
namespace {

std::atomic<long> count = 0;

// The machine's own fused multiply-add, with the handler's denormals as zero.
__attribute__((target("fma"))) float multiply_add(float a, float b, float c) {
  return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

// AMX state of the thread. Palette 1: 8 tiles of up to 16 rows x 64 bytes.
struct Tiles {
  bool configured = false;
  uint16_t row_bytes[8] = {};
  uint8_t rows[8] = {};
  alignas(64) uint8_t data[8][16][64] = {};
};
thread_local Tiles tiles;

// The registers of the interrupted code, in the signal frame.
class Registers {
 public:
  explicit Registers(ucontext_t* context) : context_(context) {
    fx_ = reinterpret_cast<uint8_t*>(context->uc_mcontext.fpregs);
  }
  uint64_t general(int number) const {
    return static_cast<uint64_t>(context_->uc_mcontext.gregs[index(number)]);
  }
  uint64_t rip() const { return static_cast<uint64_t>(context_->uc_mcontext.gregs[REG_RIP]); }
  void set_rip(uint64_t to) { context_->uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(to); }

  void read_zmm(int number, uint8_t* to) const {
    std::memset(to, 0, 64);
    for_parts(number, [&](uint8_t* part, int component, int offset, int size) {
      if (present(component)) std::memcpy(to + offset, part, static_cast<size_t>(size));
    });
  }
  void write_zmm(int number, const uint8_t* from) {
    for_parts(number, [&](uint8_t* part, int component, int offset, int size) {
      if (!present(component)) {  // it was in its initial state: zeros
        std::memset(start(component), 0, component_size(component));
        uint64_t bits;
        std::memcpy(&bits, fx_ + 512, 8);
        bits |= uint64_t{1} << component;
        std::memcpy(fx_ + 512, &bits, 8);
      }
      std::memcpy(part, from + offset, static_cast<size_t>(size));
    });
  }

 private:
  static int index(int number) {
    constexpr int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                               REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return order[number];
  }
  // XSAVE components: 1 xmm, 2 upper halves of ymm, 6 upper halves of zmm 0-15, 7 zmm 16-31.
  static void layout(int component, unsigned int* size, unsigned int* offset) {
    unsigned int c, d;
    __cpuid_count(0xd, static_cast<unsigned int>(component), *size, *offset, c, d);
  }
  static size_t component_size(int component) {
    if (component == 1) return 256;
    unsigned int size, offset;
    layout(component, &size, &offset);
    return size;
  }
  uint8_t* start(int component) const {
    if (component == 1) return fx_ + 160;
    unsigned int size, offset;
    layout(component, &size, &offset);
    return fx_ + offset;
  }
  bool present(int component) const {
    uint64_t bits;
    std::memcpy(&bits, fx_ + 512, 8);
    return bits >> component & 1;
  }
  template <class Body>
  void for_parts(int number, const Body& body) const {
    if (number >= 16) {
      body(start(7) + (number - 16) * 64, 7, 0, 64);
      return;
    }
    body(start(1) + number * 16, 1, 0, 16);
    body(start(2) + number * 16, 2, 16, 16);
    body(start(6) + number * 32, 6, 32, 32);
  }

  ucontext_t* context_;
  uint8_t* fx_;
};

// What follows the opcode: registers and a memory operand.
struct Operand {
  int mod, reg, rm;         // 3 + 3 bits, without prefix bits
  uint64_t address = 0;     // base + displacement, for mod != 3
  uint64_t index = 0;       // the index register, scaled: the stride of tile loads
  const uint8_t* end = {};  // of the instruction
};

Operand decode_operand(const Registers& r, const uint8_t* p, bool extend_base, bool extend_index,
                       int disp8_scale) {
  Operand o{};
  o.mod = *p >> 6, o.reg = *p >> 3 & 7, o.rm = *p & 7;
  ++p;
  if (o.mod == 3) {
    o.end = p;
    return o;
  }
  bool relative = false;
  if (o.rm == 4) {
    const int scale = *p >> 6, index = (*p >> 3 & 7) | (extend_index ? 8 : 0), base = *p & 7;
    ++p;
    if (index != 4) o.index = r.general(index) << scale;
    if (base == 5 && o.mod == 0) {
      int32_t displacement;
      std::memcpy(&displacement, p, 4);
      p += 4;
      o.address = static_cast<uint64_t>(int64_t{displacement});
    } else {
      o.address = r.general(base | (extend_base ? 8 : 0));
    }
  } else if (o.rm == 5 && o.mod == 0) {
    relative = true;
    int32_t displacement;
    std::memcpy(&displacement, p, 4);
    p += 4;
    o.address = static_cast<uint64_t>(int64_t{displacement});
  } else {
    o.address = r.general(o.rm | (extend_base ? 8 : 0));
  }
  if (o.mod == 1) {
    o.address += static_cast<uint64_t>(int64_t{static_cast<int8_t>(*p)} * disp8_scale);
    ++p;
  } else if (o.mod == 2) {
    int32_t displacement;
    std::memcpy(&displacement, p, 4);
    p += 4;
    o.address += static_cast<uint64_t>(int64_t{displacement});
  }
  o.end = p;
  if (relative) o.address += reinterpret_cast<uint64_t>(p);
  return o;
}

float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Tiles whose shapes do not fit together make the processor refuse, and so does this.
bool tdpbf16ps(int c, int a, int b) {
  Tiles& t = tiles;
  const int rows = t.rows[c], columns = t.row_bytes[c] / 4, pairs = t.row_bytes[a] / 4;
  if (rows == 0 || t.rows[a] != rows || t.rows[b] != pairs || t.row_bytes[b] != t.row_bytes[c]) return false;
  if (c == a || c == b || a == b) return false;
  for (int m = 0; m < rows; ++m) {
    for (int n = 0; n < columns; ++n) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < pairs; ++k) {
        uint16_t x[2], y[2];
        std::memcpy(x, t.data[a][m] + 4 * k, 4);
        std::memcpy(y, t.data[b][k] + 4 * n, 4);
        even = multiply_add(widen(x[0]), widen(y[0]), even);
        odd = multiply_add(widen(x[1]), widen(y[1]), odd);
      }
      std::memcpy(&sum, t.data[c][m] + 4 * n, 4);
      sum = sum + (even + odd);
      std::memcpy(t.data[c][m] + 4 * n, &sum, 4);
    }
  }
  for (int m = rows; m < 16; ++m) std::memset(t.data[c][m], 0, 64);
  return true;
}

// VEX.128.0F38: tile instructions.
bool run_vex(Registers& r, const uint8_t* code) {
  const bool x = (code[1] & 0x40) == 0, b = (code[1] & 0x20) == 0;
  const int map = code[1] & 0x1f, w = code[2] >> 7, l = code[2] >> 2 & 1, prefix = code[2] & 3;
  const int vvvv = ~(code[2] >> 3) & 15;
  const uint8_t opcode = code[3];
  if (map != 2 || w != 0 || l != 0) return false;
  const Operand o = decode_operand(r, code + 4, b, x, 1);
  Tiles& t = tiles;
  const auto memory = [&](int row) {
    return reinterpret_cast<uint8_t*>(o.address + static_cast<uint64_t>(row) * o.index);
  };
  if (opcode == 0x49 && prefix == 0 && o.mod != 3) {  // LDTILECFG
    const uint8_t* config = reinterpret_cast<const uint8_t*>(o.address);
    if (config[0] != 1) return false;
    t = Tiles{};
    t.configured = true;
    for (int i = 0; i < 8; ++i) {
      std::memcpy(&t.row_bytes[i], config + 16 + 2 * i, 2);
      t.rows[i] = config[48 + i];
      if (t.row_bytes[i] > 64 || t.rows[i] > 16) return false;
    }
  } else if (opcode == 0x49 && prefix == 0 && code[4] == 0xc0) {  // TILERELEASE
    t = Tiles{};
  } else if (opcode == 0x49 && prefix == 3 && o.mod == 3 && o.rm == 0) {  // TILEZERO
    if (t.rows[o.reg] == 0) return false;
    std::memset(t.data[o.reg], 0, sizeof t.data[0]);
  } else if (opcode == 0x4b && prefix == 3 && o.mod != 3) {  // TILELOADD
    if (!t.configured || t.rows[o.reg] == 0) return false;
    std::memset(t.data[o.reg], 0, sizeof t.data[0]);
    for (int row = 0; row < t.rows[o.reg]; ++row)
      std::memcpy(t.data[o.reg][row], memory(row), t.row_bytes[o.reg]);
  } else if (opcode == 0x4b && prefix == 2 && o.mod != 3) {  // TILESTORED
    if (!t.configured || t.rows[o.reg] == 0) return false;
    for (int row = 0; row < t.rows[o.reg]; ++row)
      std::memcpy(memory(row), t.data[o.reg][row], t.row_bytes[o.reg]);
  } else if (opcode == 0x5c && prefix == 2 && o.mod == 3) {  // TDPBF16PS
    if (!t.configured || !tdpbf16ps(o.reg, o.rm, vvvv)) return false;
  } else {
    return false;
  }
  r.set_rip(reinterpret_cast<uint64_t>(o.end));
  return true;
}

// EVEX.512.F3.0F38.W0 52: VDPBF16PS without a mask.
bool run_evex(Registers& r, const uint8_t* code) {
  const uint8_t p0 = code[1], p1 = code[2], p2 = code[3];
  const bool high_reg = (p0 & 0x80) == 0, x = (p0 & 0x40) == 0, b = (p0 & 0x20) == 0,
             top_reg = (p0 & 0x10) == 0;
  const int vector_length = p2 >> 5 & 3;
  const bool broadcast = p2 & 0x10;
  if ((p0 & 7) != 2 || (p1 & 0x80) || (p1 & 3) != 2 || code[4] != 0x52 || vector_length != 2) return false;
  if ((p2 & 0x87) != 0) return false;  // zeroing or a mask
  const Operand o = decode_operand(r, code + 5, b, x, broadcast ? 4 : 64);
  const int destination = o.reg | (high_reg ? 8 : 0) | (top_reg ? 16 : 0);
  const int first = (~(p1 >> 3) & 15) | (p2 & 8 ? 0 : 16);
  uint16_t a[32], y[32];
  float c[16];
  r.read_zmm(destination, reinterpret_cast<uint8_t*>(c));
  r.read_zmm(first, reinterpret_cast<uint8_t*>(a));
  if (o.mod == 3) {
    r.read_zmm(o.rm | (b ? 8 : 0) | (x ? 16 : 0), reinterpret_cast<uint8_t*>(y));
  } else {
    const uint8_t* memory = reinterpret_cast<const uint8_t*>(o.address + o.index);
    for (int i = 0; i < 16; ++i) std::memcpy(y + 2 * i, memory + (broadcast ? 0 : 4 * i), 4);
  }
  for (int i = 0; i < 16; ++i) {
    c[i] = multiply_add(widen(a[2 * i + 1]), widen(y[2 * i + 1]), c[i]);
    c[i] = multiply_add(widen(a[2 * i]), widen(y[2 * i]), c[i]);
  }
  r.write_zmm(destination, reinterpret_cast<const uint8_t*>(c));
  r.set_rip(reinterpret_cast<uint64_t>(o.end));
  return true;
}

void on_illegal_instruction(int, siginfo_t*, void* context) {
  _mm_setcsr(_mm_getcsr() |
             0x8040);  // denormals are zero; the interrupted code's own mode comes back by itself
  Registers registers(static_cast<ucontext_t*>(context));
  const uint8_t* code = reinterpret_cast<const uint8_t*>(registers.rip());
  if ((code[0] == 0xc4 && run_vex(registers, code)) || (code[0] == 0x62 && run_evex(registers, code))) {
    ++count;
    return;
  }
  constexpr char text[] = "illegal instruction that the emulation does not know\n";
  [[maybe_unused]] const ssize_t written = write(2, text, sizeof text - 1);
  signal(SIGILL, SIG_DFL);  // met again on return
}

}  // namespace

bool can_emulate() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("fma");
}

void emulate_missing_instructions() {
  struct sigaction action = {};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
}

long emulated_instructions() { return count; }

}  // namespace fusedlstm_tests
#endif
