// The most that the processor's units do: independent chains, in registers, on every thread at once; the same fed from the
// first cache, as products are; and the clock that the processor keeps then, which is lower the more current it draws.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

typedef float vec __attribute__((vector_size(NSA_VECTOR_BYTES)));

// Enough chains to cover the latency of two units, and few enough for 16 registers.
#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define COUNT(n) +1
#define DECLARE(n) vec a##n = addend * float(n + 1);
#define STEP(n) a##n = a##n * factor + addend;
#define SUM(n) total += a##n;
#define STEP_PAIRS(n) __asm__ volatile("vdpbf16ps %1, %2, %0" : "+v"(a##n) : "v"(factor), "v"(addend));

#define UNROLL _Pragma("GCC unroll 8")

// What passes through a register here can't be computed ahead, nor steps be merged.
#if defined(__x86_64__)
#define KEEP(n) __asm__ volatile("" : "+v"(a##n));
#elif defined(__aarch64__)
#define KEEP(n) __asm__ volatile("" : "+w"(a##n));
#else
#define KEEP(n)
#endif

// Multiply-adds of float32 vectors.
struct Numbers {
  static constexpr double OPERATIONS = 2.0 * (0 CHAINS(COUNT)) * (NSA_VECTOR_BYTES / 4.0); // of a step

  static float spin(int64_t steps) {
    vec factor, addend;
    for (unsigned i = 0; i < sizeof(vec) / sizeof(float); ++i) {
      factor[i] = 0.999f;
      addend[i] = 0.001f;
    }
    CHAINS(DECLARE)
    for (int64_t i = 0; i < steps; ++i) {
      CHAINS(STEP)
      CHAINS(KEEP)
    }
    vec total = addend;
    CHAINS(SUM)
    return total[0];
  }
};

// Multiply-adds of float32 vectors whose operands are read from the first cache as a register tile of a product reads them.
struct Fed {
  static constexpr int DEPTH = 64, VECTORS = NSA_VECTOR_BYTES == 64 ? 4 : 2, ROWS = 6, WIDTH = NSA_VECTOR_BYTES / 4;
  static constexpr double OPERATIONS = 2.0 * DEPTH * ROWS * VECTORS * WIDTH;

  static float spin(int64_t steps) {
    alignas(64) float left[ROWS * DEPTH];
    alignas(64) vec right[DEPTH][VECTORS];
    uint32_t state = 1;
    auto next = [&] { // numbers as any: with those of a pattern, less switches
      state = state * 1664525u + 1013904223u;
      return float(state >> 8) * (1.0f / (1 << 23)) - 1.0f;
    };
    for (float &x : left) x = next();
    for (auto &row : right)
      for (vec &x : row)
        for (int i = 0; i < WIDTH; ++i) x[i] = next();
    float kept = 0.0f;
    for (int64_t i = 0; i < steps; ++i) {
      vec sums[ROWS][VECTORS] = {};
      for (int k = 0; k < DEPTH; ++k) {
        UNROLL for (int r = 0; r < ROWS; ++r)
          UNROLL for (int v = 0; v < VECTORS; ++v) sums[r][v] += left[r * DEPTH + k] * right[k][v];
      }
      UNROLL for (int r = 1; r < ROWS; ++r) UNROLL for (int v = 0; v < VECTORS; ++v) sums[0][v] += sums[r][v];
      UNROLL for (int v = 1; v < VECTORS; ++v) sums[0][0] += sums[0][v];
      kept += sums[0][0][0];
      __asm__ volatile("" : : : "memory");
    }
    return kept;
  }
};

// Products of pairs of bfloat16 numbers, summed in float32: by tiles of 16 x 32 and 32 x 16, or by vectors.
struct Pairs {
#if defined(__AMX_BF16__)
  static constexpr double OPERATIONS = 4 * 2.0 * 16 * 16 * 32;

  static float spin(int64_t steps) {
    alignas(64) uint8_t shapes[64] = {1};
    for (int i = 0; i < 8; i++) {
      shapes[16 + 2 * i] = 64; // bytes of a row
      shapes[48 + i] = 16;     // rows
    }
    asm volatile("ldtilecfg %0; tilezero %%tmm0; tilezero %%tmm1; tilezero %%tmm2; tilezero %%tmm3; tilezero %%tmm4;"
                 "tilezero %%tmm5" : : "m"(shapes));
    for (int64_t i = 0; i < steps; ++i)
      asm volatile("tdpbf16ps %tmm5, %tmm4, %tmm0; tdpbf16ps %tmm5, %tmm4, %tmm1; tdpbf16ps %tmm5, %tmm4, %tmm2;"
                   "tdpbf16ps %tmm5, %tmm4, %tmm3");
    asm volatile("tilerelease");
    return 0.0f;
  }
#elif defined(__AVX512BF16__)
  static constexpr double OPERATIONS = 2 * Numbers::OPERATIONS;

  static float spin(int64_t steps) {
    vec factor = {}, addend = {};
    CHAINS(DECLARE)
    for (int64_t i = 0; i < steps; ++i) {
      CHAINS(STEP_PAIRS)
    }
    vec total = addend;
    CHAINS(SUM)
    return total[0];
  }
#else
  static constexpr double OPERATIONS = 0.0;

  static float spin(int64_t) { return 0.0f; }
#endif
};

// Clocks a second on this thread, by a chain of multiplications of three clocks each; 0 where that is not known of them.
static double clock_now() {
#if defined(__x86_64__)
  const int links = 10000;
  uint64_t x = 3;
  auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < links; ++i) __asm__ volatile("imul %0, %0" : "+r"(x));
  std::chrono::duration<double> lasted = std::chrono::steady_clock::now() - start;
  return 3.0 * links / lasted.count();
#else
  return 0.0;
#endif
}

// Returns operations per second of `threads` threads that each do `steps` steps, and right after them the
// `clock` of one.
template <typename Unit> static double peak(int32_t threads, int64_t steps, double *clock) {
  std::atomic<int> ready{0};
  std::atomic<float> kept{0.0f};
  std::vector<std::thread> others;
  auto work = [&] {
    ++ready;
    while (ready < threads) {
    }
    kept = Unit::spin(steps);
  };
  for (int32_t i = 1; i < threads; ++i) others.emplace_back(work);
  while (ready < threads - 1) {
  }
  auto start = std::chrono::steady_clock::now();
  work();
  *clock = clock_now(); // some microseconds of many milliseconds
  for (auto &other : others) other.join();
  std::chrono::duration<double> lasted = std::chrono::steady_clock::now() - start;
  return Unit::OPERATIONS * double(steps) * threads / lasted.count();
}

extern "C" double nsa_fma_peak(int32_t threads, int64_t steps, double *clock) { return peak<Numbers>(threads, steps, clock); }

extern "C" double nsa_fed_peak(int32_t threads, int64_t steps, double *clock) { return peak<Fed>(threads, steps, clock); }

// 0 where no unit multiplies pairs.
extern "C" double nsa_pair_peak(int32_t threads, int64_t steps, double *clock) { return peak<Pairs>(threads, steps, clock); }
