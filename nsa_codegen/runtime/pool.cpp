// Thread pool of the CPU kernels: persistent workers that take ranges of independent tasks.
// One caller at a time has the workers; a second one runs its tasks itself, in its own thread.
// `nsa_parallel` runs the tasks of a kernel; `nsa_sequence` runs kernels in order, some side by side, or takes batch rows through
// all of them side by side.
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

typedef int32_t (*nsa_task_fn)(void* context, int32_t lo, int32_t hi, int32_t worker);
typedef int32_t (*nsa_parallel_fn)(nsa_task_fn task, void* context, int32_t tasks, int32_t threads);
typedef int32_t (*nsa_entry_fn)(nsa_parallel_fn parallel, int32_t threads, int32_t tasks, const int64_t* arguments);

namespace {

constexpr int32_t kClosed = 1 << 30;   // bit of `gate`: no worker may enter any more
constexpr int32_t kShares = 4;  // a worker takes one of so many shares that each could have of the tasks left
constexpr int32_t kMostThreads = 1024;
constexpr std::chrono::microseconds kSpin(50);

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename Ready>
bool spin_until(Ready ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

struct Pool {
  std::atomic<bool> owned{false};

  // The job. Written by the owner while the gate is closed and nobody is inside.
  nsa_task_fn task = nullptr;
  void* context = nullptr;
  int32_t tasks = 0, active = 0;
  fenv_t floating_point;
  std::atomic<int32_t> next{0};
  std::atomic<int32_t> status{0};
  std::atomic<int32_t> gate{kClosed};  // workers inside the job, and kClosed

  std::mutex mutex;
  std::condition_variable wake, left;
  std::atomic<uint64_t> generation{0};
  int32_t sleeping = 0, workers = 0;
  std::vector<std::thread::native_handle_type> handles;
  int kept_off = -1;  // the processor that workers leave to the caller

  // Many tasks at first and single ones in the end, so that all workers finish together.
  void take_chunks(int32_t worker) {
    while (status.load(std::memory_order_relaxed) == 0) {
      int32_t lo = next.load(std::memory_order_relaxed), hi;
      do {
        if (lo >= tasks) return;
        const int32_t share = (tasks - lo) / active / kShares;
        hi = lo + (share < 1 ? 1 : share);
      } while (!next.compare_exchange_weak(lo, hi, std::memory_order_relaxed));
      const int32_t result = task(context, lo, hi, worker);
      int32_t good = 0;
      if (result != 0) status.compare_exchange_strong(good, result);
    }
  }

  bool enter() {
    int32_t inside = gate.load();
    while (!(inside & kClosed))
      if (gate.compare_exchange_weak(inside, inside + 1)) return true;
    return false;
  }

  void leave() {
    if (gate.fetch_sub(1) == (kClosed | 1)) {
      std::lock_guard<std::mutex> lock(mutex);
      left.notify_one();
    }
  }

  [[noreturn]] void work(int32_t worker) {
    for (uint64_t seen = 0;;) {
      auto called = [&] { return generation.load() != seen; };
      if (!spin_until(called)) {
        std::unique_lock<std::mutex> lock(mutex);
        ++sleeping;
        wake.wait(lock, called);
        --sleeping;
      }
      seen = generation.load();
      if (!enter()) continue;
      if (worker < active) {
        fesetenv(&floating_point);  // rounding and flush-to-zero as in the caller: same bits in every thread
        take_chunks(worker);
      }
      leave();
    }
  }

  void grow(int32_t wanted) {
    if (workers >= wanted) return;
    sigset_t all, before;  // signals stay with the threads of the program
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    try {
      for (; workers < wanted; ++workers) {
        std::thread made(&Pool::work, this, workers + 1);
        handles.push_back(made.native_handle());
        made.detach();
      }
    } catch (const std::system_error&) {  // no more threads to be had: go on with those there are
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  // Linux likes to wake a thread on the processor of the one that wakes it, where it waits for milliseconds, more than a
  // short kernel takes. So workers that sleep are kept off the caller's, where there are processors enough.
  void keep_off_caller() {
#if defined(__linux__)
    const int here = sched_getcpu();
    cpu_set_t allowed;
    if (here < 0 || here == kept_off || pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed)) return;
    CPU_CLR(here, &allowed);
    if (CPU_COUNT(&allowed) < static_cast<int>(handles.size())) return;
    for (auto handle : handles) pthread_setaffinity_np(handle, sizeof allowed, &allowed);
    kept_off = here;
#endif
  }

  int32_t run(nsa_task_fn new_task, void* new_context, int32_t new_tasks, int32_t threads) {
    active = threads < kMostThreads ? threads : kMostThreads;
    if (active > new_tasks) active = new_tasks;
    grow(active - 1);
    task = new_task;
    context = new_context;
    tasks = new_tasks;
    fegetenv(&floating_point);
    next.store(0);
    status.store(0);
    gate.store(0);
    {
      std::lock_guard<std::mutex> lock(mutex);
      generation.fetch_add(1);
      if (sleeping > 0) {
        keep_off_caller();
        wake.notify_all();
      }
    }
    take_chunks(0);
    gate.fetch_or(kClosed);  // a worker that has not woken yet is not waited for
    auto empty = [&] { return gate.load() == kClosed; };
    if (!spin_until(empty)) {
      std::unique_lock<std::mutex> lock(mutex);
      left.wait(lock, empty);
    }
    return status.load();
  }
};

// Never destroyed: workers may still sleep in it while the process exits.
std::atomic<Pool*> pool{new Pool};

// The threads of the parent do not exist in a forked child, and its mutex may be held by one of them.
void start_empty_after_fork() { pool.store(new Pool); }

const int registered = pthread_atfork(nullptr, nullptr, start_empty_after_fork);

}  // namespace

extern "C" int32_t nsa_parallel(nsa_task_fn task, void* context, int32_t tasks, int32_t threads) {
  if (tasks <= 0) return 0;
  if (threads <= 1 || tasks == 1) return task(context, 0, tasks, 0);
  Pool* const mine = pool.load();
  if (mine->owned.exchange(true)) return task(context, 0, tasks, 0);
  const int32_t result = mine->run(task, context, tasks, threads);
  mine->owned.store(false);
  return result;
}

namespace {

// Kernels in order: for each its entry, tasks, number of arguments, and whether it may run beside the one before; and for each
// argument which of `bases` its eight bytes start from, how far they are from there, and by how much they grow from one row,
// and one worker, to the next.
struct Sequence {
  const int64_t* kernels;
  const int64_t* bases;
  int32_t count;
};

constexpr int32_t kHeader = 4, kPlace = 4;  // numbers of a kernel, and of each of its arguments

struct Kernel {
  nsa_entry_fn entry;
  int32_t tasks;
  std::vector<int64_t> values;
};

// The kernel at `at`, which moves on behind it.
Kernel next_kernel(const Sequence& sequence, const int64_t*& at, int64_t row, int64_t worker) {
  Kernel kernel{reinterpret_cast<nsa_entry_fn>(at[0]), static_cast<int32_t>(at[1]), std::vector<int64_t>(at[2])};
  at += kHeader;
  for (int64_t& value : kernel.values) {
    value = sequence.bases[at[0]] + at[1] + row * at[2] + worker * at[3];
    at += kPlace;
  }
  return kernel;
}

int32_t call(const Kernel& kernel, nsa_parallel_fn parallel, int32_t threads) {
  return kernel.tasks > 0 ? kernel.entry(parallel, threads, kernel.tasks, kernel.values.data()) : 0;
}

thread_local int32_t own_number = 0;

int32_t alone(nsa_task_fn task, void* context, int32_t tasks, int32_t) { return task(context, 0, tasks, own_number); }

int32_t run_row(const Sequence& sequence, int64_t row, int64_t worker) {
  own_number = static_cast<int32_t>(worker);
  const int64_t* at = sequence.kernels;
  int32_t result = 0;
  for (int32_t kernel = 0; kernel < sequence.count && result == 0; ++kernel)
    result = call(next_kernel(sequence, at, row, worker), alone, 1);
  return result;
}

int32_t run_rows(void* context, int32_t lo, int32_t hi, int32_t worker) {
  int32_t result = 0;
  for (int32_t row = lo; row < hi && result == 0; ++row)
    result = run_row(*static_cast<const Sequence*>(context), row, worker);
  return result;
}

// What an entry would have run: its context are the arguments that the entry was given, so it lasts as long as they do.
struct Job {
  nsa_task_fn task;
  void* context;
  int32_t tasks;
};

thread_local Job noted{};

int32_t note(nsa_task_fn task, void* context, int32_t tasks, int32_t) {
  noted = {task, context, tasks};
  return 0;
}

// Tasks of several jobs, numbered one job after the other.
int32_t run_jobs(void* context, int32_t lo, int32_t hi, int32_t worker) {
  for (const Job& job : *static_cast<const std::vector<Job>*>(context)) {
    const int32_t from = lo > 0 ? lo : 0, to = hi < job.tasks ? hi : job.tasks;
    const int32_t result = from < to ? job.task(job.context, from, to, worker) : 0;
    if (result != 0) return result;
    lo -= job.tasks;
    hi -= job.tasks;
  }
  return 0;
}

// Kernels side by side: their tasks are those of one call of the pool, so that few of each still keep all threads busy.
int32_t run_together(const std::vector<Kernel>& kernels, int32_t threads) {
  if (kernels.size() == 1) return call(kernels[0], nsa_parallel, threads);
  std::vector<Job> jobs;
  int32_t tasks = 0;
  for (const Kernel& kernel : kernels) {
    if (kernel.tasks <= 0) continue;
    const int32_t result = call(kernel, note, threads);
    if (result != 0) return result;
    jobs.push_back(noted);
    tasks += noted.tasks;
  }
  return nsa_parallel(run_jobs, &jobs, tasks, threads);
}

int32_t run_waves(const Sequence& sequence, int32_t threads) {
  const int64_t* at = sequence.kernels;
  std::vector<Kernel> together;
  int32_t result = 0;
  for (int32_t kernel = 0; kernel < sequence.count && result == 0; ++kernel) {
    if (at[3] == 0 && !together.empty()) {
      result = run_together(together, threads);
      together.clear();
    }
    together.push_back(next_kernel(sequence, at, 0, 0));
  }
  return result == 0 && !together.empty() ? run_together(together, threads) : result;
}

}  // namespace

extern "C" int32_t nsa_sequence(const int64_t* kernels, const int64_t* bases, int32_t count, int32_t rows,
                                int32_t threads) {
  Sequence sequence{kernels, bases, count};
  if (rows == 1) return run_waves(sequence, threads);
  return nsa_parallel(run_rows, &sequence, rows, threads);
}
