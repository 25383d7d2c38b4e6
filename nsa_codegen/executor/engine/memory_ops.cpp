// Loads, stores, atomics, cp.async: all checked, lane by lane.
#include "lanes.h"

constexpr u64 TRACKED_BYTES = u64(64) << 20;  // larger tensors are not tracked: it takes 8 bytes a byte

// Two blocks of a launch have no order: what one stores, no other may store or load, save by atomics.
static void order_blocks(Warp& w, const Ins& i, int lane, Range& r, u64 address, u32 bytes, bool write) {
  if ((!write && r.writers.empty()) || r.end - r.begin > TRACKED_BYTES) return;
  if (r.writers.empty()) r.writers.assign(r.end - r.begin, 0), r.lines.assign(r.end - r.begin, 0);
  const u32 mine = (w.block->number + 1) | (w.atomic ? 0x80000000u : 0);
  for (u64 k = address - r.begin; k < address - r.begin + bytes; k++) {
    const u32 last = r.writers[k];
    if (last && (last ^ mine) << 1 && !(w.atomic && last >> 31)) {
      char text[160];
      snprintf(text, sizeof text,
               "argument %d, byte %llu: %s by this block and written by block number %u of the same launch", r.argument,
               (unsigned long long)k, write ? "written" : "read", (last & 0x7fffffffu) - 1);
      report(w, i, lane, F_GLOBAL_RACE, address, text, r.lines[k]);
      return;
    }
    if (write) r.writers[k] = mine, r.lines[k] = i.line;
  }
}

u8* global_check(Warp& w, const Ins& i, int lane, u64 address, u32 bytes, u32 align, bool write) {
  auto& ranges = w.block->launch->ranges;
  size_t low = 0, high = ranges.size();
  while (low < high) {
    size_t mid = (low + high) / 2;
    if (ranges[mid].end <= address)
      low = mid + 1;
    else
      high = mid;
  }
  if (low == ranges.size() || address < ranges[low].begin || address + bytes > ranges[low].end) {
    char text[200];
    const Range* near = nullptr;
    u64 best = ~u64(0);
    for (auto& r : ranges) {
      u64 d = address < r.begin ? r.begin - address : address >= r.end ? address - r.end + 1 : 0;
      if (d < best) best = d, near = &r;
    }
    if (near)
      snprintf(text, sizeof text,
               "%s of %u bytes outside every argument; %lld bytes from the start of argument %d, which has %lld",
               write ? "write" : "read", bytes, (long long)(i64(address) - i64(near->begin)), near->argument,
               (long long)(near->end - near->begin));
    else
      snprintf(text, sizeof text, "%s of %u bytes outside every argument", write ? "write" : "read", bytes);
    report(w, i, lane, F_GLOBAL_BOUNDS, address, text);
    return nullptr;
  }
  if (address % align) {
    report(w, i, lane, F_MISALIGNED, address, write ? "global write" : "global read");
    return nullptr;
  }
  if (w.block->launch->desc->races) order_blocks(w, i, lane, ranges[low], address, bytes, write);
  return reinterpret_cast<u8*>(address);
}

bool shared_check(Warp& w, const Ins& i, int lane, u32 offset, u32 bytes, u32 align) {
  if (u64(offset) + bytes > w.block->shared.size()) {
    char text[160];
    snprintf(text, sizeof text, "shared access of %u bytes at %u; the block has %zu bytes", bytes, offset,
             w.block->shared.size());
    report(w, i, lane, F_SHARED_BOUNDS, offset, text);
    return false;
  }
  if (offset % align) {
    report(w, i, lane, F_MISALIGNED, offset, "shared access");
    return false;
  }
  return true;
}

u8* reach(Warp& w, const Ins& i, int lane, u64 address, int space, u32 bytes, bool write) {
  if (space == GENERIC) {
    u64 top = address & SPACE_MASK;
    space = top == SHARED_BASE ? SHARED : top == LOCAL_BASE ? LOCAL : top == PARAM_BASE ? PARAM : GLOBAL;
    if (space != GLOBAL) address &= ~SPACE_MASK;
  }
  switch (space) {
    case GLOBAL: return global_check(w, i, lane, address, bytes, bytes, write);
    case SHARED: {
      u32 offset = u32(address);  // 32-bit base plus immediate wraps, as the hardware does
      if (!shared_check(w, i, lane, offset, bytes, bytes)) return nullptr;
      if (write)
        shared_write(*w.block, w, i, lane, offset, bytes);
      else
        shared_read(*w.block, w, i, lane, offset, bytes);
      return w.block->shared.data() + offset;
    }
    case LOCAL: {
      size_t each = size_t(w.block->launch->desc->local_bytes);
      if (address + bytes > each) {
        report(w, i, lane, F_LOCAL_BOUNDS, address, "local access");
        return nullptr;
      }
      if (address % bytes) {
        report(w, i, lane, F_MISALIGNED, address, "local access");
        return nullptr;
      }
      return w.local.data() + each * lane + address;
    }
    case PARAM: {
      auto* d = w.block->launch->desc;
      if (write || address + bytes > u64(d->parameter_bytes)) {
        report(w, i, lane, F_BAD_SPACE, address, "parameter space");
        return nullptr;
      }
      return const_cast<u8*>(d->parameters) + address;
    }
  }
  return nullptr;
}

namespace {
// imm0: space | bytes << 8 | vector << 16 | signed << 24 | wide address << 25 | wide registers << 26; imm1: offset.
struct Access {
  int space;
  u32 bytes, vector;
  bool is_signed, wide_address, wide_registers;
  explicit Access(const Ins& i)
      : space(int(i.imm[0] & 255)),
        bytes(u32(i.imm[0] >> 8 & 255)),
        vector(u32(i.imm[0] >> 16 & 255)),
        is_signed(i.imm[0] >> 24 & 1),
        wide_address(i.imm[0] >> 25 & 1),
        wide_registers(i.imm[0] >> 26 & 1) {}
  u64 address(Warp& w, const Ins& i, i32 row, int l) const {
    return (wide_address ? w.row64(row)[l] : u64(w.row(row)[l])) + u64(i.imm[1]);
  }
};

inline void set_register(Warp& w, i32 row, int l, u64 v, bool wide) {
  if (row < 0) return;
  if (wide)
    w.row64(row)[l] = v;
  else
    w.row(row)[l] = u32(v);
}
inline u64 get_register(Warp& w, i32 row, int l, bool wide) { return wide ? w.row64(row)[l] : w.row(row)[l]; }

void load(Warp& w, const Ins& i, u32 m) {
  const Access a(i);
  const i32 base = i.ops[i.count - 1];
  ACTIVE (m) {
    u8* p = reach(w, i, l, a.address(w, i, base, l), a.space, a.bytes * a.vector, false);
    for (u32 k = 0; k < a.vector; k++) {
      u64 v = u64(POISON) << 32 | POISON;
      if (p) {
        v = 0;
        std::memcpy(&v, p + k * a.bytes, a.bytes);
      }
      if (a.is_signed && a.bytes < 8) {
        int shift = 64 - 8 * int(a.bytes);
        v = u64(i64(v << shift) >> shift);
        if (!a.wide_registers && a.bytes < 4) v &= 0xffffffffu;
      }
      set_register(w, i.ops[k], l, v, a.wide_registers);
    }
  }
}
void store(Warp& w, const Ins& i, u32 m) {
  const Access a(i);
  const i32 base = i.ops[i.count - 1];
  ACTIVE (m) {
    u8* p = reach(w, i, l, a.address(w, i, base, l), a.space, a.bytes * a.vector, true);
    if (!p) continue;
    for (u32 k = 0; k < a.vector; k++) {
      u64 v = get_register(w, i.ops[k], l, a.wide_registers);
      std::memcpy(p + k * a.bytes, &v, a.bytes);
    }
  }
}
OP("ld", load);
OP("st", store);

enum AtomOp { A_ADD, A_MIN, A_MAX, A_AND, A_OR, A_XOR, A_EXCH, A_CAS, A_INC, A_DEC };
enum AtomType { T_U32, T_S32, T_U64, T_S64, T_F32, T_F64, T_F16, T_BF16, T_F16X2, T_BF16X2 };
template <class T>
T combine(int op, T old, T b, T c) {
  switch (op) {
    case A_ADD: return T(old + b);
    case A_MIN: return b < old ? b : old;
    case A_MAX: return b > old ? b : old;
    case A_EXCH: return b;
    case A_CAS: return old == b ? c : old;
  }
  if constexpr (std::is_integral_v<T>) switch (op) {
      case A_AND: return old & b;
      case A_OR: return old | b;
      case A_XOR: return old ^ b;
      case A_INC: return old >= b ? T(0) : T(old + 1);
      case A_DEC: return old == 0 || old > b ? b : T(old - 1);
    }
  return old;
}
template <float (*TO)(u16), u16 (*FROM)(float, int)>
u32 combine_narrow(int op, u32 old, u32 b, int parts) {
  u32 out = parts == 1 ? old & ~0xffffu : 0;
  for (int k = 0; k < parts; k++)
    out |= u32(FROM(combine<float>(op, TO(u16(old >> 16 * k)), TO(u16(b >> 16 * k)), 0), RN)) << 16 * k;
  return out;
}
template <class T>
u64 one(int op, u64 old, u64 b, u64 c) {
  return Raw<T>(bits<Raw<T>>(combine<T>(op, bits<T>(Raw<T>(old)), bits<T>(Raw<T>(b)), bits<T>(Raw<T>(c)))));
}
// imm0 as in ld; imm2: op | type << 8 | returns << 16. Operands: destinations (if any), values, third (cas), address.
void atomic(Warp& w, const Ins& i, u32 m) {
  w.atomic = true;
  const Access a(i);
  const int op = int(i.imm[2] & 255), type = int(i.imm[2] >> 8 & 255);
  const bool returns = i.imm[2] >> 16 & 1;
  const i32 base = i.ops[i.count - 1];
  const i32* values = i.ops + (returns ? a.vector : 0);
  ACTIVE (m) {
    u64 address = a.address(w, i, base, l);
    u8* p = reach(w, i, l, address, a.space, a.bytes * a.vector, true);
    for (u32 k = 0; k < a.vector; k++) {
      u64 old = u64(POISON) << 32 | POISON, fresh = 0;
      if (p) {
        old = 0;
        std::memcpy(&old, p + k * a.bytes, a.bytes);
        u64 b = get_register(w, values[k], l, a.bytes == 8),
            c = op == A_CAS ? get_register(w, values[1], l, a.bytes == 8) : 0;
        switch (type) {
          case T_U32: fresh = one<u32>(op, old, b, c); break;
          case T_S32: fresh = one<i32>(op, old, b, c); break;
          case T_U64: fresh = one<u64>(op, old, b, c); break;
          case T_S64: fresh = one<i64>(op, old, b, c); break;
          case T_F32: fresh = one<float>(op, old, b, c); break;
          case T_F64: fresh = one<double>(op, old, b, c); break;
          case T_F16: fresh = combine_narrow<half_to, half_from>(op, u32(old), u32(b), 1); break;
          case T_BF16: fresh = combine_narrow<bf16_to, bf16_from>(op, u32(old), u32(b), 1); break;
          case T_F16X2: fresh = combine_narrow<half_to, half_from>(op, u32(old), u32(b), 2); break;
          default: fresh = combine_narrow<bf16_to, bf16_from>(op, u32(old), u32(b), 2); break;
        }
        std::memcpy(p + k * a.bytes, &fresh, a.bytes);
      }
      if (returns) set_register(w, i.ops[k], l, old, a.bytes == 8);
    }
  }
  w.atomic = false;
  w.block->progress++;
}
OP("atom", atomic);

// cp.async: imm0 bytes, imm1 offset of the source, imm2 offset of the destination, imm3: 1 a source size follows,
// 2 an ignore-source predicate follows, 4 wide destination address. Operands: destination, source [, size or
// predicate].
void cp_async(Warp& w, const Ins& i, u32 m) {
  const u32 size = u32(i.imm[0]);
  Block& b = *w.block;
  ACTIVE (m) {
    u64 dst = (i.imm[3] & 4 ? w.row64(i.ops[0])[l] : u64(w.row(i.ops[0])[l])) + u64(i.imm[2]);
    u64 src = w.row64(i.ops[1])[l] + u64(i.imm[1]);
    u32 take = size;
    if (i.imm[3] & 1) take = w.row(i.ops[2])[l];
    if (i.imm[3] & 2 && w.row(i.ops[2])[0] >> l & 1) take = 0;
    if (take > size) {
      report(w, i, l, F_GLOBAL_BOUNDS, src, "cp.async with a source size above the copied size");
      take = size;
    }
    AsyncCopy copy{u32(l), w.committed[l], u32(dst), size, {}, i.line, w.copy_sequence++};
    if (!shared_check(w, i, l, dst >> 32 ? ~0u : u32(dst), size, size)) continue;
    if (src % size) report(w, i, l, F_MISALIGNED, src, "cp.async source");
    if (take) {
      u8* p = global_check(w, i, l, src, take, 1, false);
      if (p)
        std::memcpy(copy.data, p, take);
      else
        for (u32 k = 0; k < size; k += 4) std::memcpy(copy.data + k, &POISON, 4);
    }
    shared_write(b, w, i, l, copy.dst, size, true);
    for (u32 k = 0; k < size; k++) b.in_flight[copy.dst + k]++;
    for (u32 k = 0; k < size; k += 4) std::memcpy(&b.shared[copy.dst + k], &POISON, 4);  // undefined until it arrives
    w.copies.push_back(copy);
  }
}
void land(Warp& w, const Ins& i, const AsyncCopy& c);
void wait_groups(Warp& w, const Ins& i, u32 m, u32 allowed) {
  std::vector<AsyncCopy> rest;
  for (auto& c : w.copies) {
    bool lands = m >> c.lane & 1 && i64(c.group) < i64(w.committed[c.lane]) - i64(allowed);
    if (lands)
      land(w, i, c);
    else
      rest.push_back(c);
  }
  w.copies.swap(rest);
}
void land(Warp& w, const Ins& i, const AsyncCopy& c) {
  Block& b = *w.block;
  for (u32 k = 0; k < c.size; k++) b.in_flight[c.dst + k]--;
  shared_write(b, w, i, int(c.lane), c.dst, c.size, true);
  std::memcpy(&b.shared[c.dst], c.data, c.size);
}
OP("cp.async", cp_async);
OP("cp.async.commit_group", [](Warp& w, const Ins&, u32 m) {
  ACTIVE (m) w.committed[l]++;
});
OP("cp.async.wait_group", [](Warp& w, const Ins& i, u32 m) { wait_groups(w, i, m, u32(i.imm[0])); });
OP("cp.async.wait_all", [](Warp& w, const Ins& i, u32 m) {
  ACTIVE (m) w.committed[l]++;
  wait_groups(w, i, m, 0);
});

// Address spaces. imm0: the base to add; operands may be 32 or 64 bits wide (imm1: wide source, imm2: wide
// destination).
void to_generic(Warp& w, const Ins& i, u32 m) {
  ACTIVE (m) {
    u64 v = i.imm[1] ? w.row64(i.ops[1])[l] : w.row(i.ops[1])[l];
    if ((v & SPACE_MASK) == 0) v |= u64(i.imm[0]);
    w.row64(i.ops[0])[l] = v;
  }
}
void to_space(Warp& w, const Ins& i, u32 m) {
  ACTIVE (m) {
    u64 v = w.row64(i.ops[1])[l];
    if (i.imm[0]) {
      if ((v & SPACE_MASK) != u64(i.imm[0])) report(w, i, l, F_BAD_SPACE, v, "cvta.to of an address of another space");
      v &= ~SPACE_MASK;
    }
    if (i.imm[2])
      w.row64(i.ops[0])[l] = v;
    else
      w.row(i.ops[0])[l] = u32(v);
  }
}
OP("cvta", to_generic);
OP("cvta.to", to_space);
}  // namespace

// Lands the copies that `lane` started before copy number `before`.
void land_copies(Warp& w, const Ins& i, u32 lane, u64 before) {
  std::vector<AsyncCopy> rest;
  for (auto& c : w.copies)
    if (c.lane == lane && c.sequence < before)
      land(w, i, c);
    else
      rest.push_back(c);
  w.copies.swap(rest);
}

void lane_exit_checks(Warp& w, const Ins& i, u32 mask) {
  for (auto& c : w.copies)
    if (mask >> c.lane & 1)
      report_at(*w.block, c.line, w.index * 32 + int(c.lane), F_PENDING_EXIT, c.dst, "cp.async still pending at exit",
                i.line);
  if (!w.mmas.empty()) report(w, i, 0, F_PENDING_EXIT, 0, "wgmma still pending at exit");
  for (auto& s : w.stores)
    if (mask >> s.lane & 1)
      report_at(*w.block, s.line, w.index * 32 + int(s.lane), F_PENDING_EXIT, 0,
                "bulk store still reads shared memory at exit", i.line);
}
