// A launch: findings, blocks and the order of their warps, when a block is stuck; and the interface to Python.
#include <algorithm>
#include <functional>
#include <tuple>

#include "lanes.h"
#include "races.h"

Block::Block() = default;
Block::~Block() = default;

std::vector<OpInfo>& registry() {
  static std::vector<OpInfo> all;
  return all;
}

void report_at(Block& b, i32 line, int lane, FindingKind kind, u64 address, const char* text, i32 other_line) {
  LaunchDesc& d = *b.launch->desc;
  u64 key = u64(kind) << 32 | u32(line);
  auto found = b.launch->seen.find(key);
  if (found != b.launch->seen.end()) {
    d.findings[found->second].count++;
    return;
  }
  if (d.finding_count >= d.finding_capacity) return;
  b.launch->seen[key] = d.finding_count;
  Finding& f = d.findings[d.finding_count++];
  f = Finding{kind, line, i32(b.id[0]), i32(b.id[1]), i32(b.id[2]), lane, 1, other_line, address, {}};
  snprintf(f.text, sizeof f.text, "%s", text);
}
void report(Warp& w, const Ins& i, int lane, FindingKind kind, u64 address, const char* text, i32 other_line) {
  report_at(*w.block, i.line, w.index * 32 + lane, kind, address, text, other_line);
}

void shared_read(Block& b, Warp& w, const Ins& i, int lane, u32 offset, u32 bytes) {
  u8 any = 0;
  for (u32 k = 0; k < bytes; k++) any |= b.in_flight[offset + k];
  if (any)
    report(w, i, lane, F_READ_IN_FLIGHT, offset,
           "shared memory is read while an asynchronous copy into it is on its way");
  if (b.races) b.races->read(w, i, lane, offset, bytes);
}
void shared_write(Block& b, Warp& w, const Ins& i, int lane, u32 offset, u32 bytes, bool async) {
  u8 any = 0, reads = 0;
  for (u32 k = 0; k < bytes; k++) any |= b.in_flight[offset + k], reads |= b.read_in_flight[offset + k];
  if (any)
    report(w, i, lane, F_WRITE_IN_FLIGHT, offset,
           async ? "two asynchronous copies into one place are on their way"
                 : "shared memory is written while an asynchronous copy into it is on its way");
  if (reads)
    report(w, i, lane, F_WRITE_IN_FLIGHT, offset,
           "shared memory is written while an asynchronous instruction still reads it");
  if (b.races) b.races->write(w, i, lane, offset, bytes, w.atomic);
}

namespace {
// Who waits where: warps in the same state are named together.
void describe_deadlock(Block& b) {
  struct Place {
    u32 pc;
    int state;
    u64 id;
    u32 parity, mask;
    bool operator<(const Place& o) const {
      return std::tie(pc, state, id, parity, mask) < std::tie(o.pc, o.state, o.id, o.parity, o.mask);
    }
  };
  std::map<Place, std::string> places;
  i32 line = 0;
  int first = -1;
  for (auto& w : b.warps) {
    std::map<Place, u32> groups;
    LANES
      if (w.state[l] != EXITED) {
        const Ins& i = b.launch->program[w.pc[l]];
        Place p{w.pc[l], w.state[l], 0, 0, 0};
        if (p.state == AT_BARRIER) p.id = w.row(i.ops[i.imm[0] >= 2 ? 1 : 0])[l];
        if (p.state == AT_MBARRIER) p.id = w.wait[l].address, p.parity = w.wait[l].parity;
        groups[p] |= 1u << l;
      }
    for (auto& [found, mask] : groups) {
      Place place = found;
      if (first < 0) first = w.index * 32 + __builtin_ctz(mask), line = b.launch->program[place.pc].line;
      place.mask = mask;
      std::string& who = places[place];
      who += (who.empty() ? "" : ",") + std::to_string(w.index);
    }
  }
  std::string text = "no lane can go on:";
  for (auto& [p, who] : places) {
    char part[200];
    const char* what = p.state == AT_BARRIER    ? "barrier"
                       : p.state == AT_MBARRIER ? "mbarrier"
                       : p.state == AT_WARP     ? "lanes of its warp"
                                                : "polling";
    int n = snprintf(part, sizeof part, " [warp %s lanes %08x line %d: %s", who.c_str(), p.mask,
                     b.launch->program[p.pc].line, what);
    if (p.state == AT_BARRIER || p.state == AT_MBARRIER)
      n += snprintf(part + n, sizeof part - size_t(n), " %llu", (unsigned long long)p.id);
    if (p.state == AT_MBARRIER) n += snprintf(part + n, sizeof part - size_t(n), " parity %u", p.parity);
    text += std::string(part) + "]";
    auto bar = p.state == AT_MBARRIER ? b.mbarriers.find(u32(p.id)) : b.mbarriers.end();
    if (bar != b.mbarriers.end()) {
      snprintf(part, sizeof part, " {phase %llu: %u of %u arrivals and %lld bytes missing}",
               (unsigned long long)bar->second.completed, bar->second.pending, bar->second.expected,
               (long long)bar->second.transactions);
      text += part;
    }
  }
  report_at(b, line, first, F_DEADLOCK, 0, text.c_str());
}

void fill_special(Launch& launch, Block& b, Warp& w, i64 which, u32* row) {
  const LaunchDesc& d = *launch.desc;
  LANES {
    u64 t = u64(w.index) * 32 + l;
    u32 v = 0;
    switch (which) {
      case 0: v = u32(t % d.block[0]); break;
      case 1: v = u32(t / d.block[0] % d.block[1]); break;
      case 2: v = u32(t / (d.block[0] * d.block[1])); break;
      case 3:
      case 4:
      case 5: v = u32(d.block[which - 3]); break;
      case 6:
      case 7:
      case 8: v = b.id[which - 6]; break;
      case 9:
      case 10:
      case 11: v = u32(d.grid[which - 9]); break;
      case 12: v = u32(l); break;
      case 13: v = u32(w.index); break;
      case 14: v = 1u << l; break;           // lanemask_eq
      case 15: v = (1u << l) - 1; break;     // lt
      case 16: v = (2u << l) - 1; break;     // le
      case 17: v = ~((2u << l) - 1); break;  // gt
      case 18: v = ~((1u << l) - 1); break;  // ge
      case 19: v = 0; break;
      case 20: v = 1; break;
      case 21: v = u32(b.shared.size()); break;
      case 22: v = u32(b.warps.size()); break;
    }
    row[l] = v;
  }
}

void run_block(Launch& launch, u64 index) {
  LaunchDesc& d = *launch.desc;
  Block b;
  b.launch = &launch;
  b.number = u32(index);
  b.id[0] = u32(index % d.grid[0]);
  b.id[1] = u32(index / d.grid[0] % d.grid[1]);
  b.id[2] = u32(index / (d.grid[0] * d.grid[1]));
  b.random.seed(u64(d.seed) * 0x9e3779b97f4a7c15ull + index);
  b.shared.resize(size_t(d.shared_bytes));
  for (size_t k = 0; k < b.shared.size(); k++) b.shared[k] = u8(POISON >> 8 * (k & 3));
  b.in_flight.assign(b.shared.size(), 0);
  b.read_in_flight.assign(b.shared.size(), 0);
  const i64 threads = d.block[0] * d.block[1] * d.block[2];
  b.warps.resize(size_t((threads + 31) / 32));
  if (d.races) b.races = std::make_unique<Races>(u32(b.warps.size()), u32(b.shared.size()));
  for (size_t k = 0; k < b.warps.size(); k++) {
    Warp& w = b.warps[k];
    w.block = &b;
    w.index = int(k);
    w.file.resize(launch.template_rows.size() + 16);
    w.rows = w.file.data();
    while (reinterpret_cast<uintptr_t>(w.rows) % 64) w.rows++;
    std::memcpy(w.rows, launch.template_rows.data(), launch.template_rows.size() * 4);
    for (i64 s = 0; s < d.special_count; s++)
      fill_special(launch, b, w, d.specials[2 * s + 1], w.row(i32(d.specials[2 * s])));
    w.local.resize(size_t(d.local_bytes) * 32);
    for (size_t p = 0; p + 4 <= w.local.size(); p += 4) std::memcpy(&w.local[p], &POISON, 4);
    w.row_in_flight.assign(size_t(d.row_count), 0);
    w.written.assign(size_t(d.row_count), 0);
    LANES {
      bool exists = i64(k) * 32 + l < threads;
      w.pc[l] = 0;
      w.state[l] = exists ? RUN : EXITED;
      w.live |= u32(exists) << l;
    }
    w.run = w.live;
  }
  std::vector<size_t> order(b.warps.size());
  for (size_t k = 0; k < order.size(); k++) order[k] = d.order == 1 ? order.size() - 1 - k : k;
  u64 last_progress = 0;
  int idle_rounds = 0;
  while (true) {
    bool moved = false, all_done = true;
    const u64 round_progress = b.progress;
    if (d.order == 2) std::shuffle(order.begin(), order.end(), b.random);
    for (size_t k : order) {
      Warp& w = b.warps[k];
      if (!w.live) continue;
      const u64 before = b.executed;
      w.polling = false;
      i64 quantum = d.order == 2 ? i64(1 + b.random() % 400) : 200000;
      Outcome o = run_warp(w, quantum);
      if (o != DONE) all_done = false;
      if (!w.polling && b.executed != before) moved = true;
      if (d.order == 2 && !b.async.empty() && b.random() % 8 == 0) {
        size_t pick = b.random() % b.async.size();
        auto op = std::move(b.async[pick]);
        b.async.erase(b.async.begin() + long(pick));
        op.run();
        b.progress++;
      }
    }
    if (all_done) break;
    if (b.progress != round_progress) moved = true;
    if (!moved) {
      if (!b.async.empty()) {
        size_t pick = d.order == 2 ? b.random() % b.async.size() : d.order == 1 ? b.async.size() - 1 : 0;
        auto op = std::move(b.async[pick]);
        b.async.erase(b.async.begin() + long(pick));
        op.run();
        b.progress++;
        continue;
      }
      bool polls = false;
      for (auto& w : b.warps) polls |= w.polling;
      if (polls && b.progress != last_progress) {
        last_progress = b.progress;
        idle_rounds = 0;
        continue;
      }
      if (polls && ++idle_rounds < 1000) continue;
      describe_deadlock(b);
      break;
    }
    if (i64(b.executed) > d.budget) {
      report_at(b, 0, 0, F_BUDGET, 0,
                "the block used up its budget of instructions: an endless loop, or a budget too small");
      describe_deadlock(b);
      break;
    }
  }
  for (auto& op : b.async) report_at(b, op.line, int(op.lane), F_PENDING_EXIT, 0, op.what.c_str());
  while (!b.async.empty()) {
    auto op = std::move(b.async.front());
    b.async.pop_front();
    op.run();
  }
  d.executed += i64(b.executed);
}
}  // namespace

extern "C" {
int op_count() { return int(registry().size()); }
const char* op_name(int k) { return registry()[size_t(k)].name; }

// Runs the blocks first_block to last_block; fills in the findings and the number of warp instructions executed.
void run_launch(LaunchDesc* d) {
  Launch launch;
  launch.desc = d;
  d->finding_count = d->executed = 0;
  launch.program.resize(size_t(d->instruction_count));
  for (i64 k = 0; k < d->instruction_count; k++) {
    const i64* s = d->instructions + 14 * k;
    Ins& i = launch.program[size_t(k)];
    const OpInfo& op = registry()[size_t(s[0])];
    i.fn = op.fn;
    i.control = op.control;
    i.collective = op.collective;
    i.guard = i32(s[1]);
    i.guard_flip = s[2] ? ~0u : 0u;
    i.ops = d->operands + s[3];
    i.count = i32(s[4]);
    for (int q = 0; q < 4; q++) i.imm[q] = s[5 + q];
    i.line = i32(s[9]);
    i.target = i32(s[10]);
    i.mask_operand = i32(s[11]);
    i.own_registers = s[12];  // the wgmma family minds its own registers
    i.writes = i32(s[13]);
    i.is_move = std::string(op.name).rfind("mov.", 0) == 0 && i.count == 2;
    launch.has_wgmma |= i.own_registers;
  }
  for (i64 k = 0; k < d->range_count; k++) {
    const i64* s = d->ranges + 4 * k;
    launch.ranges.push_back({u64(s[0]), u64(s[1]), i32(s[2]), i32(s[3]), {}, {}});
  }
  std::sort(launch.ranges.begin(), launch.ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  launch.template_rows.assign(size_t(d->row_count) * 32, POISON);
  for (i64 k = 0; k < d->constant_count; k++) {
    const i64* s = d->constants + 3 * k;
    u32* row = launch.template_rows.data() + s[0] * 32;
    LANES
      if (s[1] == 8)
        reinterpret_cast<u64*>(row)[l] = u64(s[2]);
      else
        row[l] = u32(s[2]);
  }
  const u64 blocks = u64(d->grid[0] * d->grid[1] * d->grid[2]);
  std::vector<u64> order;
  for (u64 k = u64(d->first_block); k < blocks && k < u64(d->last_block); k++) order.push_back(k);
  if (d->order == 1) std::reverse(order.begin(), order.end());
  if (d->order == 2) {
    std::mt19937_64 random{u64(d->seed)};
    std::shuffle(order.begin(), order.end(), random);
  }
  for (u64 k : order) run_block(launch, k);
}
}
