// Shared-memory races by vector clocks, one clock per warp and one per agent that writes asynchronously.
//
// An agent stands for the bulk copies that signal one mbarrier. Clocks advance at every release, so an access carries
// (owner, clock of the owner). The lanes of one warp are told apart by a simpler rule: between a write by one and a
// read by another the warp has to meet, at a barrier, at bar.warp.sync or by waiting for an mbarrier.
#pragma once
#include <algorithm>

#include "state.h"

struct Races {
  using Clock = std::vector<u32>;
  u32 warps, owners, bytes;
  static constexpr u32 AGENTS = 64;
  std::vector<Clock> clocks;                          // per warp: what it has seen of each owner
  std::vector<u32> agent_clock, writer, writer_line;  // per byte: owner << 24 | clock of the last write; its line
  std::vector<u32> atomics;                           // the same for the last atomic after it; empty until there is one
  std::vector<u32> proxied;               // per owner: the clock up to which a proxy fence has published its writes
  std::vector<std::vector<u32>> readers;  // per warp and byte: the clock of its last read
  static constexpr u32 MANY = 63;         // instead of a lane: all lanes of a matrix instruction
  std::vector<u32> meetings;              // per warp: how often its lanes have met
  std::vector<u32> lane_writer;           // per byte: lane << 26 | meetings of the writing warp
  std::vector<std::vector<u32>> lane_readers;  // per warp and byte: the same for its last read
  Clock barrier[16];
  std::map<u32, std::pair<Clock, Clock>> mbarriers;  // gathering, completed
  std::map<u32, u32> agents;

  Races(u32 warp_count, u32 shared_bytes)
      : warps(warp_count),
        owners(warp_count + AGENTS),
        bytes(shared_bytes),
        clocks(warp_count, Clock(owners, 0)),
        agent_clock(AGENTS, 0),
        writer(shared_bytes, 0),
        writer_line(shared_bytes, 0),
        proxied(owners, 0),
        readers(warp_count, std::vector<u32>(shared_bytes, 0)),
        meetings(warp_count, 1),
        lane_writer(shared_bytes, 0),
        lane_readers(warp_count, std::vector<u32>(shared_bytes, 0)) {
    for (u32 k = 0; k < warps; k++) clocks[k][k] = 1;
    for (auto& b : barrier) b.assign(owners, 0);
  }
  static void join(Clock& into, const Clock& from) {
    for (size_t k = 0; k < into.size(); k++) into[k] = std::max(into[k], from[k]);
  }
  std::pair<Clock, Clock>& at(u32 address) {
    auto& m = mbarriers[address];
    if (m.first.empty()) m = {Clock(owners, 0), Clock(owners, 0)};
    return m;
  }
  u32 agent(u32 address) {
    auto found = agents.find(address);
    if (found == agents.end()) found = agents.emplace(address, u32(agents.size()) % AGENTS).first;
    return found->second;
  }

  u32 stamp_of(Warp& w, const Ins& i, int lane) const {
    return (i.collective == ALIGNED ? MANY : u32(lane)) << 26 | (meetings[w.index] & 0x3ffffff);
  }
  // True if two stamps of one warp are of different lanes, with no meeting between.
  static bool strangers(u32 a, u32 b) {
    return a && ((a ^ b) & 0x3ffffff) == 0 && (a >> 26 != b >> 26 || a >> 26 == MANY);
  }
  void meet(Warp& w, u32 mask) {
    if ((w.live & ~mask) == 0) meetings[w.index]++;
  }
  void read_by_lane(Warp& w, const Ins& i, int lane, u32 offset, u32 count) {
    const u32 mine = stamp_of(w, i, lane);
    u32* last = lane_readers[w.index].data() + offset;
    for (u32 k = 0; k < count; k++) {
      if (writer[offset + k] >> 24 == u32(w.index) && strangers(lane_writer[offset + k], mine)) {
        report(w, i, lane, F_LANES, offset + k,
               "a lane reads what another lane of its warp wrote, without bar.warp.sync", i32(writer_line[offset + k]));
        return;
      }
      last[k] = strangers(last[k], mine) ? MANY << 26 | (mine & 0x3ffffff) : mine;
    }
  }
  void write_by_lane(Warp& w, const Ins& i, int lane, u32 offset, u32 count) {
    const u32 mine = stamp_of(w, i, lane);
    const u32* last = lane_readers[w.index].data() + offset;
    for (u32 k = 0; k < count; k++) {
      if (strangers(last[k], mine)) {
        report(w, i, lane, F_LANES, offset + k,
               "a lane overwrites what another lane of its warp has read, without bar.warp.sync");
        break;
      }
    }
    std::fill_n(lane_writer.begin() + offset, count, mine);
  }

  // A read of what another owner wrote without an order between them; async: through the asynchronous proxy.
  void read(Warp& w, const Ins& i, int lane, u32 offset, u32 count, bool async = false) {
    const Clock& seen = clocks[w.index];
    u32* mine = readers[w.index].data() + offset;
    const u32 now = seen[w.index];
    read_by_lane(w, i, lane, offset, count);
    if (!after_atomics(w, i, lane, offset, count)) return;
    u32 known = ~0u;
    for (u32 k = 0; k < count; k++) {
      mine[k] = now;
      u32 last = writer[offset + k];
      if (last == known || last == 0) continue;
      known = last;
      u32 owner = last >> 24, clock = last & 0xffffff;
      if (clock > seen[owner]) {
        report(w, i, lane, F_RACE, offset + k,
               owner < warps ? "shared memory is read without a barrier after another warp's write"
                             : "shared memory is read without a wait for the bulk copy that fills it",
               i32(writer_line[offset + k]));
        return;
      }
      if (async && owner < warps && clock > proxied[owner]) {
        report(w, i, lane, F_PROXY, offset + k,
               "an asynchronous instruction reads what was stored without fence.proxy.async",
               i32(writer_line[offset + k]));
        return;
      }
    }
  }
  // A write over what another owner wrote or read without an order between them.
  bool ordered(Warp& w, const Ins& i, int lane, u32 offset, u32 count) {
    const Clock& seen = clocks[w.index];
    u32 known = ~0u;
    for (u32 k = 0; k < count; k++) {
      u32 last = writer[offset + k];
      if (last == known || last == 0) continue;
      known = last;
      if ((last & 0xffffff) > seen[last >> 24]) {
        report(w, i, lane, F_RACE, offset + k, "shared memory is written without a barrier after another's write",
               i32(writer_line[offset + k]));
        return false;
      }
    }
    for (u32 other = 0; other < warps; other++) {
      if (other == u32(w.index)) continue;
      const u32* r = readers[other].data() + offset;
      u32 latest = 0;
      for (u32 k = 0; k < count; k++) latest = std::max(latest, r[k]);
      if (latest > seen[other]) {
        char text[120];
        snprintf(text, sizeof text, "shared memory is written without a barrier after warp %u has read it", other);
        report(w, i, lane, F_RACE, offset, text);
        return false;
      }
    }
    return true;
  }
  void write(Warp& w, const Ins& i, int lane, u32 offset, u32 count, bool atomic) {
    if (!ordered(w, i, lane, offset, count)) atomic = false;
    if (!atomic) {
      after_atomics(w, i, lane, offset, count);
      write_by_lane(w, i, lane, offset, count);
      stamp(u32(w.index), clocks[w.index][w.index], i.line, offset, count);
      return;
    }
    if (atomics.empty()) atomics.assign(bytes, 0);
    for (u32 k = 0; k < count; k++) atomics[offset + k] = u32(w.index) << 24 | (clocks[w.index][w.index] & 0xffffff);
  }
  // A plain access to what another warp changed by an atomic without an order between them.
  bool after_atomics(Warp& w, const Ins& i, int lane, u32 offset, u32 count) {
    if (atomics.empty()) return true;
    for (u32 k = 0; k < count; k++)
      if (u32 last = atomics[offset + k]; (last & 0xffffff) > clocks[w.index][last >> 24]) {
        report(w, i, lane, F_RACE, offset + k,
               "shared memory is accessed without a barrier after another warp's atomic");
        return false;
      }
    return true;
  }
  // An mbarrier is used by a warp that has not seen its initialisation.
  void published(Warp& w, const Ins& i, int lane, u32 address) {
    u32 last = writer[address];
    if ((last & 0xffffff) > clocks[w.index][last >> 24])
      report(w, i, lane, F_RACE, address, "an mbarrier is used without a barrier after its initialisation",
             i32(writer_line[address]));
  }
  void stamp(u32 owner, u32 clock, i32 line, u32 offset, u32 count) {
    const u32 mark = owner << 24 | (clock & 0xffffff);
    for (u32 k = 0; k < count; k++) writer[offset + k] = mark, writer_line[offset + k] = u32(line);
    if (!atomics.empty()) std::fill_n(atomics.begin() + offset, count, 0);
  }
  // A bulk copy lands: its agent is the writer, and the mbarrier carries the agent's clock.
  void land(u32 mbarrier_address, i32 line, const std::vector<u32>& pieces, u32 size) {
    u32 a = agent(mbarrier_address), clock = ++agent_clock[a];
    for (u32 offset : pieces) stamp(warps + a, clock, line, offset, size);
    at(mbarrier_address).first[warps + a] = clock;
  }
  void read_again(Warp& w, u32 offset, u32 count) {
    const u32 now = clocks[w.index][w.index];
    u32* mine = readers[w.index].data() + offset;
    for (u32 k = 0; k < count; k++) mine[k] = now;
  }
  void proxy_fence(Warp& w) {
    for (u32 k = 0; k < owners; k++) proxied[k] = std::max(proxied[k], clocks[w.index][k]);
    clocks[w.index][w.index]++;
  }
  void release_barrier(Warp& w, u32, int id) {
    join(barrier[id], clocks[w.index]);
    clocks[w.index][w.index]++;
  }
  void acquire_barrier(Warp& w, u32 mask, int id) {
    join(clocks[w.index], barrier[id]);
    meet(w, mask);
  }
  void reset_barrier(int id) { std::fill(barrier[id].begin(), barrier[id].end(), 0); }
  void release_mbarrier(Warp& w, u32 address) {
    join(at(address).first, clocks[w.index]);
    clocks[w.index][w.index]++;
  }
  void complete_mbarrier(u32 address) {
    auto& m = at(address);
    join(m.second, m.first);
    std::fill(m.first.begin(), m.first.end(), 0);
  }
  void acquire_mbarrier(Warp& w, u32 mask, u32 address) {
    join(clocks[w.index], at(address).second);
    meet(w, mask);
  }
};
