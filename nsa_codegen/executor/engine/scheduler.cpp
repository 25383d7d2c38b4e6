// The scheduler of one warp: which of its lanes run, where they meet again, and what makes them wait.
#include "lanes.h"
#include "races.h"

void finish_stores(Warp& w, u32 mask);

namespace {
void wake_warp_waiters(Warp& w) {
  LANES
    if (w.state[l] == AT_WARP) {
      w.state[l] = RUN;
      w.run |= 1u << l;
    }
}

u32 live_warps(Block& b) {
  u32 n = 0;
  for (auto& w : b.warps) n += w.live != 0;
  return n;
}

// Releases the barrier if everyone is there.
void try_release(Block& b, int id) {
  NamedBarrier& bar = b.barriers[id];
  if (bar.arrived == 0) return;
  u32 expected = bar.expected ? bar.expected : 32 * live_warps(b);
  if (bar.arrived < expected) return;
  if (bar.arrived > expected)
    report_at(b, bar.line, 0, F_BARRIER, u64(id), "more threads arrived at a barrier than it counts");
  for (auto& entry : bar.waiting) {
    const Ins& i = *entry.ins;
    ACTIVE (entry.mask) {
      entry.warp->state[l] = RUN;
      entry.warp->pc[l]++;
    }
    entry.warp->run |= entry.mask;
    if (i.imm[0] == 2) write_lanes<u32>(*entry.warp, i.ops[0], entry.mask, [&](int) { return bar.population; });
    if (i.imm[0] == 3) put_predicate(*entry.warp, i.ops[0], entry.mask, bar.all ? ~0u : 0u);
    if (i.imm[0] == 4) put_predicate(*entry.warp, i.ops[0], entry.mask, bar.any ? ~0u : 0u);
    if (b.races) b.races->acquire_barrier(*entry.warp, entry.mask, id);
  }
  if (b.races) b.races->reset_barrier(id);
  bar = NamedBarrier{};
  b.progress++;
}

// bar / barrier: imm0 0 sync, 1 arrive, 2 red.popc, 3 red.and, 4 red.or; imm1 has a count; imm2 counts lanes one by
// one; imm3 negates the predicate. Operands: [d], id, [count], [predicate]. Returns true if the lanes wait.
bool barrier(Warp& w, const Ins& i, u32 m) {
  Block& b = *w.block;
  const int first = i.imm[0] >= 2 ? 1 : 0, lane = __builtin_ctz(m);
  const u32 id = w.row(i.ops[first])[lane];
  u32 count = i.imm[1] ? w.row(i.ops[first + 1])[lane] : 0;
  if (id >= 16) {
    report(w, i, lane, F_BARRIER, id, "barrier number above 15");
    return false;
  }
  if (count % 32) report(w, i, lane, F_BARRIER, id, "barrier count is no multiple of the warp size");
  NamedBarrier& bar = b.barriers[id];
  if (bar.arrived && bar.expected != count) {
    char text[160];
    snprintf(text, sizeof text, "barrier %u is entered with count %u and with count %u (0: the whole block)", id,
             bar.expected, count);
    report(w, i, lane, F_BARRIER, id, text, bar.line);
  }
  for (auto& entry : bar.waiting)
    if (entry.warp == &w && entry.mask & m)
      report(w, i, lane, F_BARRIER, id, "a lane arrives twice in one phase", bar.line);
  bar.expected = count;
  bar.line = i.line;
  bar.arrived += i.imm[2] ? u32(__builtin_popcount(m)) : 32;
  if (i.imm[0] >= 2) {
    u32 p = w.row(i.ops[first + 1 + (i.imm[1] ? 1 : 0)])[0];
    if (i.imm[3]) p = ~p;
    bar.population += u32(__builtin_popcount(p & m));
    bar.any |= (p & m) != 0;
    bar.all &= (p & m) == m;
  }
  if (b.races) b.races->release_barrier(w, m, int(id));
  b.progress++;
  const bool waits = i.imm[0] != 1;
  if (waits) {
    bar.waiting.push_back({&w, m, &i});
    ACTIVE (m) w.state[l] = AT_BARRIER;
    w.run &= ~m;
  }
  try_release(b, int(id));
  return waits;
}
OP("barrier", [](Warp&, const Ins&, u32) {}, BARRIER, ALIGNED);
OP("barrier.lanes", [](Warp&, const Ins&, u32) {}, BARRIER, NOT_COLLECTIVE);
OP("bra", [](Warp&, const Ins&, u32) {}, BRANCH);
OP("exit", [](Warp&, const Ins&, u32) {}, EXIT);
OP("yield", [](Warp& w, const Ins&, u32) { w.polling = true; }, YIELD);
OP("trap", [](Warp& w, const Ins& i, u32 m) { report(w, i, __builtin_ctz(m), F_BARRIER, 0, "trap"); }, EXIT);

void check_flying_rows(Warp& w, const Ins& i, u32 m) {
  if (i.own_registers) return;
  for (i32 k = 0; k < i.count; k++)
    if (i.ops[k] >= 0 && w.row_in_flight[size_t(i.ops[k])] & (k < i.writes ? 3 : 1)) {
      report(w, i, __builtin_ctz(m), F_WGMMA, u64(i.ops[k]),
             "a register of a wgmma is used before the wgmma has been waited for");
      return;
    }
}
// When registers were last written: what wgmma.fence has to come after. A move hands on the time of its source.
inline void note_writes(Warp& w, const Ins& i) {
  w.tick++;
  if (i.own_registers) return;
  const u64 source = i.is_move ? w.written[size_t(i.ops[1])] : 0;
  const u64 when = source ? source : w.tick;  // constants were never written: moving one in is a write
  for (i32 k = 0; k < i.writes; k++)
    if (i.ops[k] >= 0) w.written[size_t(i.ops[k])] = when;
}

void leave(Warp& w, const Ins& i, u32 m) {
  lane_exit_checks(w, i, m);
  finish_stores(w, m);
  ACTIVE (m) w.state[l] = EXITED;
  w.run &= ~m;
  w.live &= ~m;
  wake_warp_waiters(w);
  if (!w.live)
    for (int id = 0; id < 16; id++) try_release(*w.block, id);
  w.block->progress++;
}
}  // namespace

Outcome run_warp(Warp& w, i64 quantum) {
  const Ins* program = w.block->launch->program.data();
  const bool has_wgmma = w.block->launch->has_wgmma;
  Block& b = *w.block;
  if (w.run != w.live)
    LANES
      if (w.state[l] == AT_MBARRIER && mbarrier_done(b, w.wait[l])) {
        w.state[l] = RUN;
        w.run |= 1u << l;
        b.progress++;
      }
  i64 left = quantum;
  while (w.run) {
    u32 pc = ~0u, next = ~0u, group = 0;
    ACTIVE (w.run)
      if (w.pc[l] < pc) pc = w.pc[l];
    ACTIVE (w.run) {
      if (w.pc[l] == pc)
        group |= 1u << l;
      else if (w.pc[l] < next)
        next = w.pc[l];
    }
    const u32 start = group;
    bool regroup = false;
    while (!regroup) {
      if (left-- <= 0) {
        ACTIVE (group) w.pc[l] = pc;
        b.executed += u64(quantum);
        return PAUSED;
      }
      const Ins& i = program[pc];
      u32 m = group;
      if (i.guard >= 0) m &= w.row(i.guard)[0] ^ i.guard_flip;
      if (!m) {
        pc++;
        regroup = pc >= next;
        if (regroup)
          ACTIVE (group) w.pc[l] = pc;
        continue;
      }
      if (has_wgmma) {
        if (!w.mmas.empty()) check_flying_rows(w, i, m);
        note_writes(w, i);
      }
      if (i.collective != NOT_COLLECTIVE) {
        u32 all = m;
        LANES
          if (w.state[l] == AT_WARP && w.pc[l] == pc) all |= 1u << l;
        u32 rest = all, done = 0;
        while (rest) {
          int lane = __builtin_ctz(rest);
          u32 need = i.collective == ALIGNED ? w.live : w.row(i.ops[i.mask_operand])[lane];
          if (need & ~w.live) {
            report(w, i, lane, F_DIVERGED, need, "the member mask names lanes that have exited");
            need &= w.live;
          }
          if (!(need >> lane & 1)) {
            report(w, i, lane, F_DIVERGED, need, "a lane outside the member mask");
            need |= 1u << lane;
          }
          if ((need & ~all) == 0) {
            done |= need;
            if (i.control == PLAIN) i.fn(w, i, need);
          }
          rest &= ~need;
        }
        u32 parked = all & ~done;
        if (parked) {
          ACTIVE (group | all) {
            w.pc[l] = parked >> l & 1 ? pc : pc + 1;
            w.state[l] = parked >> l & 1 ? AT_WARP : RUN;
          }
          w.run = (w.run | all) & ~parked;
          if (i.control == BARRIER && done) { /* an aligned barrier needs all live lanes, so nobody is parked then */
          }
          break;
        }
        ACTIVE (all) w.state[l] = RUN;
        w.run |= all;
        if (all & ~group) {
          ACTIVE (all) w.pc[l] = pc;
          group |= all;
        }
        m = done;
        if (i.control == PLAIN) {
          pc++;
          regroup = pc >= next;
          if (regroup)
            ACTIVE (group) w.pc[l] = pc;
          continue;
        }
      }
      switch (i.control) {
        case PLAIN:
          i.fn(w, i, m);
          pc++;
          break;
        case BRANCH:
          if (m == group)
            pc = u32(i.target);
          else {
            ACTIVE (group) w.pc[l] = m >> l & 1 ? u32(i.target) : pc + 1;
            regroup = true;
            continue;
          }
          break;
        case EXIT:
          if (i.fn) i.fn(w, i, m);
          ACTIVE (group) w.pc[l] = pc + 1;
          leave(w, i, m);
          regroup = true;
          continue;
        case BARRIER: {
          ACTIVE (group) w.pc[l] = m >> l & 1 ? pc : pc + 1;
          if (!barrier(w, i, m))
            ACTIVE (m) w.pc[l] = pc + 1;
          regroup = true;
          continue;
        }
        case TRY_WAIT: {
          i.fn(w, i, m);  // sets the predicate of lanes that need not wait, parks the others
          u32 parked = 0;
          ACTIVE (m)
            if (w.state[l] == AT_MBARRIER) parked |= 1u << l;
          ACTIVE (group) w.pc[l] = parked >> l & 1 ? pc : pc + 1;
          w.run &= ~parked;
          regroup = true;
          continue;
        }
        case YIELD:
          i.fn(w, i, m);
          pc++;
          if (w.polling) left = 0;
          break;
      }
      if (pc >= next) {
        ACTIVE (group) w.pc[l] = pc;
        regroup = true;
      }
    }
    (void)start;
  }
  b.executed += u64(quantum - left);
  return w.live ? BLOCKED : DONE;
}
