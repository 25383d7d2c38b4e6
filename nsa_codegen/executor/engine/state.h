// What a launch, a block and a warp are made of while they are executed.
#pragma once
#include <deque>
#include <map>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "numeric.h"

constexpr u64 SHARED_BASE = 0x1000000000000000ull, LOCAL_BASE = 0x2000000000000000ull,
              PARAM_BASE = 0x3000000000000000ull;
constexpr u64 SPACE_MASK = 0x7000000000000000ull;
constexpr u32 POISON = 0x7fff7fffu;  // NaN as float, as two halves and as two bfloat16; far out of range as an index
enum Space { GENERIC, GLOBAL, SHARED, LOCAL, PARAM };
enum LaneState : u8 { RUN, AT_BARRIER, AT_MBARRIER, AT_WARP, EXITED };

struct Warp;
struct Block;
struct Launch;
struct Ins;
using Handler = void (*)(Warp&, const Ins&, u32 mask);
enum Control : i32 { PLAIN, BRANCH, EXIT, BARRIER, TRY_WAIT, YIELD };
enum Collective : i32 { NOT_COLLECTIVE, ALIGNED, BY_MASK };

struct Ins {
  Handler fn;
  i32 guard;       // row of the predicate, or -1
  u32 guard_flip;  // all ones for @!p
  const i32* ops;  // rows
  i32 count;
  i32 control, collective, mask_operand;
  i64 imm[4];
  i32 line, target;
  i32 writes;  // how many of the operands, from the first, are results
  bool is_move, own_registers;
};

struct OpInfo {
  const char* name;
  Handler fn;
  i32 control;
  i32 collective;
};
std::vector<OpInfo>& registry();
struct Register {
  Register(const char* name, Handler fn, i32 control = PLAIN, i32 collective = NOT_COLLECTIVE) {
    registry().push_back({name, fn, control, collective});
  }
};
#define OP_CAT2(a, b) a##b
#define OP_CAT(a, b) OP_CAT2(a, b)
#define OP(name, ...) static Register OP_CAT(reg_, __COUNTER__)(name, __VA_ARGS__)

enum FindingKind : i32 {
  F_GLOBAL_BOUNDS = 1,
  F_SHARED_BOUNDS,
  F_LOCAL_BOUNDS,
  F_MISALIGNED,
  F_READ_IN_FLIGHT,
  F_WRITE_IN_FLIGHT,
  F_PENDING_EXIT,
  F_DEADLOCK,
  F_BARRIER,
  F_MBARRIER,
  F_DIVERGED,
  F_WGMMA,
  F_TENSOR_MAP,
  F_RACE,
  F_UNINITIALISED,
  F_BUDGET,
  F_BAD_SPACE,
  F_PROXY,
  F_GLOBAL_RACE,
  F_LANES,
};

struct Finding {  // mirrored in Python
  i32 kind, line, bx, by, bz, lane, count, other_line;
  u64 address;
  char text[480];
};

struct TensorMap {  // mirrored in Python
  u64 address;
  i64 dims[5], strides[5], box[5], element_strides[5];  // strides in bytes; strides[0] is the element's size
  i32 rank, element_bytes, type, swizzle, interleave, nan_fill;
};

struct Range {
  u64 begin, end;
  i32 writable, argument;
  std::vector<u32> writers;  // per byte, once written: 1 + the block that wrote it last; the top bit for atomics
  std::vector<i32> lines;    // and where
};

struct LaunchDesc {  // mirrored in Python
  i64 instruction_count;
  const i64* instructions;  // 14 numbers each
  const i32* operands;
  i64 row_count;
  i64 constant_count;
  const i64* constants;  // row, bytes (4 or 8), value
  i64 special_count;
  const i64* specials;  // row, which
  i64 parameter_bytes;
  const u8* parameters;
  i64 grid[3], block[3];
  i64 shared_bytes, local_bytes;
  i64 range_count;
  const i64* ranges;  // begin, end, writable, argument
  i64 map_count;
  const TensorMap* maps;
  i64 order, seed, budget, first_block, last_block, races;
  i64 finding_capacity;
  Finding* findings;
  i64 finding_count, executed;  // results
};

struct AsyncCopy {
  u32 lane, group, dst, size;
  u8 data[16];
  i32 line;
  u64 sequence;
};

struct PendingMma {
  u32 group;
  i32 line;
  std::vector<i32> rows, sources;
  std::vector<u32> pieces;
};

struct Warp {
  Block* block;
  int index;
  std::vector<u32> file;
  u32* rows;
  u32 pc[32];
  u8 state[32];
  u32 run = 0, live = 0;
  u32 current_pc = 0;
  // cp.async, per lane
  std::vector<AsyncCopy> copies;
  u32 committed[32] = {};
  u64 copy_sequence = 0;
  // wgmma, per warp
  std::vector<PendingMma> mmas;
  u32 mma_committed = 0;
  std::vector<u8> row_in_flight;
  std::vector<u64> written;  // per row: when it was last written, in ticks
  u64 tick = 1, fence_tick = 0;
  // bulk stores, per lane
  struct BulkStore {
    u32 lane, group;
    std::vector<u32> sources;
    bool read_done;
    i32 line;
    std::function<void()> finish;
  };
  std::vector<BulkStore> stores;
  u32 store_committed[32] = {};
  struct Wait {
    u32 address, parity;
    i32 kind;
  } wait[32];
  bool polling = false;
  bool atomic = false;  // the running access is an atomic one
  std::vector<u8> local;
  u32* row(i32 r) { return rows + size_t(r) * 32; }
  u64* row64(i32 r) { return reinterpret_cast<u64*>(rows + size_t(r) * 32); }
};

struct NamedBarrier {
  u32 arrived = 0, expected = 0, any = 0, all = 1, population = 0;
  i32 line = 0;
  struct Waiting {
    Warp* warp;
    u32 mask;
    const Ins* ins;
  };
  std::vector<Waiting> waiting;
};

struct MBarrier {
  bool valid = false;
  u32 expected = 0, pending = 0;
  i64 transactions = 0;
  u32 phase = 0;  // parity of the running phase
  i32 line = 0;
  u64 completed = 0;
};

struct AsyncOp {
  i32 line;
  u32 lane;
  std::function<void()> run;
  std::string what;
};

struct Block {
  Launch* launch;
  u32 id[3], number;
  std::vector<u8> shared, in_flight;  // in_flight: asynchronous writes on their way, per byte
  std::vector<u8> read_in_flight;     // asynchronous reads on their way, per byte
  std::vector<Warp> warps;
  NamedBarrier barriers[16];
  std::map<u32, MBarrier> mbarriers;
  std::deque<AsyncOp> async;
  std::mt19937_64 random;
  u64 executed = 0, progress = 0;
  std::unique_ptr<struct Races> races;
  Block();
  ~Block();
};

struct Launch {
  LaunchDesc* desc;
  std::vector<Ins> program;
  std::vector<Range> ranges;
  std::vector<u32> template_rows;
  bool has_wgmma = false;
  std::map<u64, i64> seen;  // (kind, line) -> index of the finding
};

enum Outcome { BLOCKED, PAUSED, DONE };
// Runs a warp for at most `quantum` instructions: until it waits, yields or ends.
Outcome run_warp(Warp& w, i64 quantum);

void report(Warp& w, const Ins& i, int lane, FindingKind kind, u64 address, const char* text, i32 other_line = 0);
void report_at(Block& b, i32 line, int lane, FindingKind kind, u64 address, const char* text, i32 other_line = 0);

// Memory: every access goes through these.
u8* reach(Warp& w, const Ins& i, int lane, u64 address, int space, u32 bytes, bool write);
void shared_read(Block& b, Warp& w, const Ins& i, int lane, u32 offset, u32 bytes);
void shared_write(Block& b, Warp& w, const Ins& i, int lane, u32 offset, u32 bytes, bool async = false);
bool shared_check(Warp& w, const Ins& i, int lane, u32 offset, u32 bytes, u32 align);
u8* global_check(Warp& w, const Ins& i, int lane, u64 address, u32 bytes, u32 align, bool write);
void lane_exit_checks(Warp& w, const Ins& i, u32 mask);
bool mbarrier_done(Block& b, const Warp::Wait& w);

#define LANES for (int l = 0; l < 32; l++)
#define ACTIVE(m) for (u32 left_ = (m), l = 0; left_ && ((l = __builtin_ctz(left_)), true); left_ &= left_ - 1)
