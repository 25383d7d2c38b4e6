// Bulk asynchronous copies: tensor maps with bounds, zero fill and swizzles; linear copies; bulk groups.
#include "lanes.h"
#include "races.h"

void mbarrier_complete(Block& b, i32 line, int lane, u32 address, i64 bytes);
void mbarrier_arrive(Warp& w, const Ins& i, int lane, u32 address, u32 count);
void mbarrier_expect_one_more(Warp& w, const Ins& i, int lane, u32 address);
void land_copies(Warp& w, const Ins& i, u32 lane, u64 before);

// The address at which a swizzle (0, 32, 64 or 128 bytes) puts the byte that is linear at `offset`.
u32 swizzled(u32 offset, int swizzle) {
  switch (swizzle) {
    case 128: return offset ^ (offset >> 7 & 7) << 4;
    case 64: return offset ^ (offset >> 7 & 3) << 4;
    case 32: return offset ^ (offset >> 7 & 1) << 4;
  }
  return offset;
}

namespace {
struct Transfer {           // one bulk operation of one lane, as pieces of equal size
  std::vector<u32> shared;  // addresses in shared memory
  std::vector<u8*> global;  // null: out of bounds
  u32 size = 0;
  u32 bytes() const { return u32(shared.size()) * size; }
};

const TensorMap* map_of(Warp& w, const Ins& i, int lane, u64 address) {
  auto* d = w.block->launch->desc;
  u64 magic = 0, index = 0;
  if ((address & SPACE_MASK) == PARAM_BASE && (address & ~SPACE_MASK) + 128 <= u64(d->parameter_bytes)) {
    std::memcpy(&magic, d->parameters + (address & ~SPACE_MASK), 8);
    std::memcpy(&index, d->parameters + (address & ~SPACE_MASK) + 8, 8);
  }
  if (magic != 0x70616D726F736E74ull || i64(index) >= d->map_count) {
    report(w, i, lane, F_TENSOR_MAP, address, "the address is not that of a tensor map among the parameters");
    return nullptr;
  }
  const TensorMap& m = d->maps[index];
  const char* wrong = nullptr;
  if (m.interleave) wrong = "interleaved tensor maps are not modelled";
  if (m.address % 16) wrong = "the tensor map's address is not a multiple of 16";
  for (int k = 0; k < m.rank; k++) {
    if (m.box[k] < 1 || m.box[k] > 256) wrong = "a box extent of the tensor map is not in 1..256";
    if (m.dims[k] < 1) wrong = "an extent of the tensor map is below 1";
    if (k && (m.strides[k] % 16 || m.strides[k] >= i64(1) << 40))
      wrong = "a stride of the tensor map is not a multiple of 16 below 2^40";
    if (m.element_strides[k] != 1) wrong = "element strides other than 1 are not modelled";
  }
  const i64 inner = m.box[0] * m.element_bytes;
  if (inner % 16) wrong = "the inner box extent in bytes is not a multiple of 16";
  if (m.swizzle && inner > m.swizzle) wrong = "the inner box extent exceeds the swizzle's span";
  if (m.swizzle && inner < m.swizzle) wrong = "an inner box extent below the swizzle's span is not modelled";
  if (wrong) {
    report(w, i, lane, F_TENSOR_MAP, address, wrong);
    return nullptr;
  }
  return &m;
}

// The pieces (16 bytes or an element) of a box at `coordinates`, and where they lie in shared memory.
bool tensor_transfer(Warp& w, const Ins& i, int lane, const TensorMap& m, const i32* coordinates, u32 base, bool write,
                     Transfer& t) {
  const u32 inner = u32(m.box[0] * m.element_bytes);
  if (!shared_check(w, i, lane, base, 1, 128)) return false;
  i64 rows = 1;
  for (int k = 1; k < m.rank; k++) rows *= m.box[k];
  const u32 total = u32(rows) * inner;
  if (!shared_check(w, i, lane, base, total, 128)) return false;
  // Pieces of 16 bytes where a box row lies wholly inside or outside at that granularity, else single elements.
  const i64 first = coordinates[0], end = m.dims[0];
  const u32 per = 16 / u32(m.element_bytes);
  const bool fine = (first % per || (end % per && first + m.box[0] > end));
  t.size = fine ? u32(m.element_bytes) : 16;
  const u32 step = t.size / u32(m.element_bytes);
  for (i64 r = 0; r < rows; r++) {
    u64 address = m.address;
    bool inside = true;
    i64 rest = r;
    for (int k = 1; k < m.rank; k++) {
      i64 c = coordinates[k] + rest % m.box[k];
      rest /= m.box[k];
      inside &= c >= 0 && c < m.dims[k];
      address += u64(c * m.strides[k]);
    }
    for (i64 e = 0; e < m.box[0]; e += step) {
      i64 c = first + e;
      bool here = inside && c >= 0 && c < end;
      t.shared.push_back(swizzled(base + u32(r) * inner + u32(e) * u32(m.element_bytes), m.swizzle));
      u8* p = nullptr;
      if (here) p = global_check(w, i, lane, address + u64(c * m.element_bytes), t.size, u32(m.element_bytes), write);
      t.global.push_back(p);
    }
  }
  return true;
}
bool linear_transfer(Warp& w, const Ins& i, int lane, u64 global, u32 shared, u32 bytes, bool write, Transfer& t) {
  if (bytes % 16 || bytes == 0) {
    report(w, i, lane, F_MISALIGNED, bytes, "the size of a bulk copy is no multiple of 16");
    return false;
  }
  if (!shared_check(w, i, lane, shared, bytes, 16)) return false;
  u8* p = global_check(w, i, lane, global, bytes, 16, write);
  t.size = 16;
  for (u32 k = 0; k < bytes; k += 16) {
    t.shared.push_back(shared + k);
    t.global.push_back(p ? p + k : nullptr);
  }
  return true;
}

void start_load(Warp& w, const Ins& i, int lane, Transfer&& t, u32 mbarrier, u32 nan_fill) {
  Block& b = *w.block;
  for (u32 s : t.shared) {
    shared_write(b, w, i, lane, s, t.size, true);
    for (u32 k = 0; k < t.size; k++) {
      b.in_flight[s + k]++;
      b.shared[s + k] = u8(POISON >> 8 * (k & 3));
    }
  }
  AsyncOp op;
  op.line = i.line;
  op.lane = u32(w.index * 32 + lane);
  op.what = "a bulk load is still pending at exit";
  op.run = [&b, &w, &i, lane, mbarrier, nan_fill, t = std::move(t)] {
    for (size_t p = 0; p < t.shared.size(); p++) {
      for (u32 k = 0; k < t.size; k++) b.in_flight[t.shared[p] + k]--;
      if (t.global[p])
        std::memcpy(&b.shared[t.shared[p]], t.global[p], t.size);
      else if (nan_fill)
        for (u32 k = 0; k < t.size; k++) b.shared[t.shared[p] + k] = u8(0x7fff7fffu >> 8 * (k & 3));
      else
        std::memset(&b.shared[t.shared[p]], 0, t.size);
    }
    if (b.races) b.races->land(mbarrier, i.line, t.shared, t.size);
    mbarrier_complete(b, i.line, w.index * 32 + lane, mbarrier, t.bytes());
  };
  b.async.push_back(std::move(op));
}

enum Reduction { COPY, ADD_F32, ADD_F16, ADD_BF16, ADD_U32 };
void start_store(Warp& w, const Ins& i, int lane, Transfer&& t, int reduction) {
  Block& b = *w.block;
  for (u32 s : t.shared) {
    u8 flying = 0;
    for (u32 k = 0; k < t.size; k++) {
      flying |= b.in_flight[s + k];
      b.read_in_flight[s + k]++;
    }
    if (flying)
      report(w, i, lane, F_READ_IN_FLIGHT, s, "a bulk store reads shared memory into which a copy is on its way");
    if (b.races) b.races->read(w, i, lane, s, t.size, true);
  }
  Warp::BulkStore store{u32(lane), w.store_committed[lane], {}, false, i.line, {}};
  store.finish = [&b, &w, reduction, t = std::move(t)] {
    for (size_t p = 0; p < t.shared.size(); p++) {
      const u32 s = t.shared[p];
      for (u32 k = 0; k < t.size; k++) b.read_in_flight[s + k]--;
      if (b.races) b.races->read_again(w, s, t.size);
      u8* g = t.global[p];
      if (!g) continue;
      if (reduction == COPY) {
        std::memcpy(g, &b.shared[s], t.size);
        continue;
      }
      const u32 width = reduction == ADD_F32 || reduction == ADD_U32 ? 4 : 2;
      for (u32 k = 0; k < t.size; k += width) {
        if (reduction == ADD_F32) {
          float x, y;
          std::memcpy(&x, g + k, 4);
          std::memcpy(&y, &b.shared[s + k], 4);
          x += y;
          std::memcpy(g + k, &x, 4);
        } else if (reduction == ADD_U32) {
          u32 x, y;
          std::memcpy(&x, g + k, 4);
          std::memcpy(&y, &b.shared[s + k], 4);
          x += y;
          std::memcpy(g + k, &x, 4);
        } else {
          u16 x, y;
          std::memcpy(&x, g + k, 2);
          std::memcpy(&y, &b.shared[s + k], 2);
          x = reduction == ADD_F16 ? half_from(half_to(x) + half_to(y)) : bf16_from(bf16_to(x) + bf16_to(y));
          std::memcpy(g + k, &x, 2);
        }
      }
    }
  };
  w.stores.push_back(std::move(store));
}

u64 wide(Warp& w, i32 row, bool is_wide, int l) { return is_wide ? w.row64(row)[l] : u64(w.row(row)[l]); }
u32 shared_address(u64 a) {
  if ((a & SPACE_MASK) == SHARED_BASE) a &= ~SPACE_MASK;
  return a >> 32 ? ~0u : u32(a);
}

// Tensor copies. imm0: rank | is_store << 8 | reduction << 16; imm1: offset of the shared address; imm2: of the
// mbarrier; imm3: 1 wide shared address, 2 wide mbarrier address. Operands: shared, map, coordinates, [mbarrier].
void tensor_copy(Warp& w, const Ins& i, u32 m) {
  const int rank = int(i.imm[0] & 255);
  const bool store = i.imm[0] >> 8 & 1;
  ACTIVE (m) {
    const TensorMap* map = map_of(w, i, int(l), w.row64(i.ops[1])[l]);
    if (!map) continue;
    if (map->rank != rank) {
      report(w, i, int(l), F_TENSOR_MAP, u64(map->rank), "the instruction's rank is not the tensor map's");
      continue;
    }
    i32 coordinates[5] = {};
    for (int k = 0; k < rank; k++) coordinates[k] = i32(w.row(i.ops[2 + k])[l]);
    u32 shared = shared_address(wide(w, i.ops[0], i.imm[3] & 1, int(l)) + u64(i.imm[1]));
    if (shared != ~0u && map->swizzle && shared % (8 * u32(map->swizzle)))
      report(w, i, int(l), F_TENSOR_MAP, shared, "the box in shared memory is not aligned to the swizzle's pattern");
    Transfer t;
    w.atomic = i.imm[0] >> 16 & 255;
    const bool fine = tensor_transfer(w, i, int(l), *map, coordinates, shared, store, t);
    w.atomic = false;
    if (!fine) continue;
    if (store) {
      int reduction = int(i.imm[0] >> 16 & 255) ? (map->element_bytes == 4 ? ADD_F32
                                                   : map->type == 2        ? ADD_BF16
                                                                           : ADD_F16)
                                                : COPY;
      start_store(w, i, int(l), std::move(t), reduction);
    } else {
      u32 mbarrier = shared_address(wide(w, i.ops[2 + rank], i.imm[3] & 2, int(l)) + u64(i.imm[2]));
      start_load(w, i, int(l), std::move(t), mbarrier, u32(map->nan_fill));
    }
    w.block->progress++;
  }
}
OP("bulk.tensor", tensor_copy);

// Linear copies. imm0: is_store | reduction << 16; imm1, imm2, imm3 as above. Operands: shared, global, size,
// [mbarrier].
void linear_copy(Warp& w, const Ins& i, u32 m) {
  ACTIVE (m) {
    u32 shared = shared_address(wide(w, i.ops[0], i.imm[3] & 1, int(l)) + u64(i.imm[1]));
    u64 global = w.row64(i.ops[1])[l];
    Transfer t;
    w.atomic = i.imm[0] >> 16 & 255;
    const bool fine = linear_transfer(w, i, int(l), global, shared, w.row(i.ops[2])[l], i.imm[0] & 1, t);
    w.atomic = false;
    if (!fine) continue;
    if (i.imm[0] & 1)
      start_store(w, i, int(l), std::move(t), int(i.imm[0] >> 16 & 255));
    else
      start_load(w, i, int(l), std::move(t), shared_address(wide(w, i.ops[3], i.imm[3] & 2, int(l)) + u64(i.imm[2])),
                 0);
    w.block->progress++;
  }
}
OP("bulk.linear", linear_copy);

OP("bulk.commit", [](Warp& w, const Ins&, u32 m) {
  ACTIVE (m) w.store_committed[l]++;
});
// Both forms of waiting move the data here: a bulk store reads its source, and writes, as late as allowed.
OP("bulk.wait", [](Warp& w, const Ins& i, u32 m) {
  std::vector<Warp::BulkStore> rest;
  for (auto& s : w.stores) {
    bool over = m >> s.lane & 1 && i64(s.group) < i64(w.store_committed[s.lane]) - i.imm[0];
    if (over)
      s.finish();
    else
      rest.push_back(std::move(s));
  }
  w.stores.swap(rest);
});
OP("fence.proxy.async", [](Warp& w, const Ins&, u32) {
  if (w.block->races) w.block->races->proxy_fence(w);
});

// cp.async.mbarrier.arrive: imm0: noinc; imm1 offset; imm3 bit 0 wide.
OP("cp.async.mbarrier.arrive", [](Warp& w, const Ins& i, u32 m) {
  Block& b = *w.block;
  ACTIVE (m) {
    u32 address = shared_address(wide(w, i.ops[0], i.imm[3] & 1, int(l)) + u64(i.imm[1]));
    if (!i.imm[0]) mbarrier_expect_one_more(w, i, int(l), address);
    u64 before = w.copy_sequence;
    AsyncOp op;
    op.line = i.line;
    op.lane = u32(w.index * 32 + int(l));
    op.what = "an arrival on an mbarrier for cp.async is still pending at exit";
    op.run = [&w, &i, address, before, lane = u32(l)] {
      land_copies(w, i, lane, before);
      mbarrier_arrive(w, i, int(lane), address, 1);
    };
    b.async.push_back(std::move(op));
  }
});
}  // namespace

// Stores that no one has waited for, at exit.
void finish_stores(Warp& w, u32 mask) {
  std::vector<Warp::BulkStore> rest;
  for (auto& s : w.stores)
    if (mask >> s.lane & 1)
      s.finish();
    else
      rest.push_back(std::move(s));
  w.stores.swap(rest);
}
