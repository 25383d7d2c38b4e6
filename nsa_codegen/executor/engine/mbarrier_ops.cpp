// mbarriers: arrival and transaction counts, phases, waits.
#include "lanes.h"
#include "races.h"

namespace {
// The mbarrier at an address, or null after a report.
MBarrier* find(Warp& w, const Ins& i, int lane, u32 address) {
  auto& all = w.block->mbarriers;
  auto found = all.find(address);
  if (found == all.end() || !found->second.valid) {
    report(w, i, lane, F_MBARRIER, address, "an mbarrier is used that was not initialised");
    return nullptr;
  }
  if (w.block->races) w.block->races->published(w, i, lane, address);
  return &found->second;
}
u32 address_of(Warp& w, const Ins& i, int operand, int lane) {  // imm1 offset, imm3 bit 0: 64-bit address
  i32 row = i.ops[operand];
  u64 a = (i.imm[3] & 1 ? w.row64(row)[lane] : u64(w.row(row)[lane])) + u64(i.imm[1]);
  if ((a & SPACE_MASK) == SHARED_BASE) a &= ~SPACE_MASK;
  return a >> 32 ? ~0u : u32(a);
}
}  // namespace

void settle(Block& b, u32 address, MBarrier& m) {
  while (m.pending == 0 && m.transactions == 0) {
    m.phase ^= 1;
    m.completed++;
    m.pending = m.expected;
    b.progress++;
    if (b.races) b.races->complete_mbarrier(address);
    if (m.expected == 0) break;
  }
}

void mbarrier_arrive(Warp& w, const Ins& i, int lane, u32 address, u32 count) {
  MBarrier* m = find(w, i, lane, address);
  if (!m) return;
  Block& b = *w.block;
  if (b.races) b.races->release_mbarrier(w, address);
  if (count > m->pending) {
    report(w, i, lane, F_MBARRIER, address, "more arrivals in a phase than the mbarrier counts");
    m->pending = 0;
  } else {
    m->pending -= count;
  }
  settle(b, address, *m);
}

void mbarrier_complete(Block& b, i32 line, int lane, u32 address, i64 bytes) {
  auto found = b.mbarriers.find(address);
  if (found == b.mbarriers.end() || !found->second.valid) {
    report_at(b, line, lane, F_MBARRIER, address, "a bulk copy signals an mbarrier that was not initialised");
    return;
  }
  found->second.transactions -= bytes;
  settle(b, address, found->second);
}

void mbarrier_expect_one_more(Warp& w, const Ins& i, int lane, u32 address) {
  MBarrier* m = find(w, i, lane, address);
  if (m) m->pending++;
}

bool mbarrier_done(Block& b, const Warp::Wait& w) {
  auto found = b.mbarriers.find(w.address);
  if (found == b.mbarriers.end()) return true;
  return w.kind ? found->second.phase != (w.parity & 1) : u32(found->second.completed) != w.parity;
}

namespace {
void init(Warp& w, const Ins& i, u32 m) {
  ACTIVE (m) {
    u32 address = address_of(w, i, 0, int(l)), count = w.row(i.ops[1])[l];
    if (!shared_check(w, i, int(l), address, 8, 8)) continue;
    if (count == 0 || count >= 1u << 20)
      report(w, i, int(l), F_MBARRIER, address, "an mbarrier's count must be between 1 and 2^20 - 1");
    shared_write(*w.block, w, i, int(l), address, 8);
    MBarrier b;
    b.valid = true;
    b.expected = b.pending = count;
    b.line = i.line;
    w.block->mbarriers[address] = b;
    if (w.block->races) w.block->races->at(address);
  }
}
OP("mbarrier.init", init);
OP("mbarrier.inval", [](Warp& w, const Ins& i, u32 m) {
  ACTIVE (m)
    if (MBarrier* b = find(w, i, int(l), address_of(w, i, 0, int(l)))) b->valid = false;
});
// arrive: imm0: 1 has a count operand, 2 has a state destination (first), 4 expects transactions (the count operand).
void arrive(Warp& w, const Ins& i, u32 m) {
  const int first = i.imm[0] & 2 ? 1 : 0;
  ACTIVE (m) {
    u32 address = address_of(w, i, first, int(l));
    u32 count = i.imm[0] & 5 ? w.row(i.ops[first + 1])[l] : 1;
    MBarrier* b = find(w, i, int(l), address);
    if (!b) continue;
    if (first && i.ops[0] >= 0) w.row64(i.ops[0])[l] = b->completed;
    if (i.imm[0] & 4) {
      b->transactions += count;
      count = 1;
    }
    mbarrier_arrive(w, i, int(l), address, count);
    w.block->progress++;
  }
}
OP("mbarrier.arrive", arrive);
OP("mbarrier.expect_tx", [](Warp& w, const Ins& i, u32 m) {
  ACTIVE (m)
    if (MBarrier* b = find(w, i, int(l), address_of(w, i, 0, int(l)))) {
      b->transactions += w.row(i.ops[1])[l];
      settle(*w.block, address_of(w, i, 0, int(l)), *b);
    }
});
OP("mbarrier.complete_tx", [](Warp& w, const Ins& i, u32 m) {
  ACTIVE (m) mbarrier_complete(*w.block, i.line, int(l), address_of(w, i, 0, int(l)), w.row(i.ops[1])[l]);
});
// Waits: operands p, address, parity or state; imm2: by parity.
u32 ready(Warp& w, const Ins& i, u32 m, u32& waiting) {
  u32 done = 0;
  ACTIVE (m) {
    u32 address = address_of(w, i, 1, int(l));
    u32 which = i.imm[2] ? w.row(i.ops[2])[l] : u32(w.row64(i.ops[2])[l]);
    if (!find(w, i, int(l), address)) {
      done |= 1u << l;
      continue;
    }
    w.wait[l] = {address, which, i32(i.imm[2])};
    if (mbarrier_done(*w.block, w.wait[l])) {
      done |= 1u << l;
      if (w.block->races) w.block->races->acquire_mbarrier(w, m, address);
    } else {
      waiting |= 1u << l;
    }
  }
  return done;
}
OP(
    "mbarrier.try_wait",
    [](Warp& w, const Ins& i, u32 m) {
      u32 waiting = 0, done = ready(w, i, m, waiting);
      put_predicate(w, i.ops[0], done, ~0u);
      ACTIVE (waiting) w.state[l] = AT_MBARRIER;
    },
    TRY_WAIT);
OP(
    "mbarrier.test_wait",
    [](Warp& w, const Ins& i, u32 m) {
      u32 waiting = 0, done = ready(w, i, m, waiting);
      put_predicate(w, i.ops[0], m, done);
      if (waiting) w.polling = true;
    },
    YIELD);
}  // namespace
