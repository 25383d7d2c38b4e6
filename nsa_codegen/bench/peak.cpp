// The most multiply-adds that the vector units do: independent chains, in registers, on every thread at once.
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

// What passes through a register here can't be computed ahead, nor steps be merged.
#if defined(__x86_64__)
#define KEEP(n) __asm__ volatile("" : "+v"(a##n));
#elif defined(__aarch64__)
#define KEEP(n) __asm__ volatile("" : "+w"(a##n));
#else
#define KEEP(n)
#endif

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

// Returns operations per second of `threads` threads that each do `steps` steps.
extern "C" double nsa_fma_peak(int32_t threads, int64_t steps) {
  std::atomic<int> ready{0};
  std::atomic<float> kept{0.0f};
  std::vector<std::thread> others;
  auto work = [&] {
    ++ready;
    while (ready < threads) {
    }
    kept = spin(steps);
  };
  for (int32_t i = 1; i < threads; ++i) others.emplace_back(work);
  while (ready < threads - 1) {
  }
  auto start = std::chrono::steady_clock::now();
  work();
  for (auto &other : others) other.join();
  std::chrono::duration<double> lasted = std::chrono::steady_clock::now() - start;
  return 2.0 * (0 CHAINS(COUNT)) * (NSA_VECTOR_BYTES / 4.0) * double(steps) * threads / lasted.count();
}
