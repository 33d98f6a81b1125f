// Runs kernels: one OS thread, and a fiber for each CUDA thread of a block that waits for others. A
// fiber whose thread has ended without that goes on with the next.
//
// Compiled without sanitizers: to ThreadSanitizer each fiber is a thread of its own, and only
// barriers and the ends of blocks, which here share their memory, put an order between them. So
// what one CUDA thread of a block writes and another one reads without a barrier in between is a
// data race to it, in whatever order the fibers ran.
#include <ucontext.h>

#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "misuse.h"

// Whether threads of a block may have one stack in turn. It would be a race to ThreadSanitizer.
#ifdef CUDA_HOST_RACES
constexpr bool kShared = false;
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#else
constexpr bool kShared = true;
static void* __tsan_get_current_fiber() { return nullptr; }
static void* __tsan_create_fiber(unsigned) { return nullptr; }
static void __tsan_switch_to_fiber(void*, unsigned) {}
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_host {
namespace {

constexpr unsigned kWarp = 32, kMaxThreads = 1024, kStack = 128 * 1024, kNoSync = 1;

struct Thread {
  void* tsan = __tsan_create_fiber(0);
  uint3 index;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  unsigned thread;  // that it is at
  bool idle = true;
};

// Where threads wait for each other.
struct Meeting {
  unsigned arrived = 0, round = 0;
};

std::mutex one_launch;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Thread> cuda_threads;
ucontext_t scheduler;
void* scheduler_tsan;
Fiber* running;
unsigned threads, begun, ended;
bool backwards, progress;
Meeting block;
int block_place;
std::array<Meeting, kMaxThreads / kWarp> warps;
// Two sets in turn: who writes to one again has met all that read it before.
std::array<std::array<uint64_t, kWarp>, kMaxThreads / kWarp> slots[2];
void (*body)(const void*);
const void* context;
char start, end;  // of a block, to ThreadSanitizer
cudaError_t last_error;

// Every other block and every other launch of a kernel begin with the last thread: no result may
// depend on their order.
unsigned current() { return backwards ? threads - 1 - running->thread : running->thread; }

void to_scheduler() {
  __tsan_switch_to_fiber(scheduler_tsan, kNoSync);
  swapcontext(&running->context, &scheduler);
}

void meet(Meeting& meeting, unsigned size) {
  const unsigned round = meeting.round;
  if (++meeting.arrived == size) {
    meeting.arrived = 0;
    ++meeting.round;
    progress = true;
  }
  while (meeting.round == round) to_scheduler();
}

// What a fiber does: a thread, and then another, until all have begun.
void work() {
  for (;;) {
    do {
      running->thread = begun++;
      const Thread& thread = cuda_threads[current()];
      threadIdx = thread.index;
      __tsan_switch_to_fiber(thread.tsan, kNoSync);
      __tsan_acquire(&start);
      body(context);
      __tsan_release(&end);
      ++ended;
      progress = true;
    } while (kShared && begun < threads);
    running->idle = true;
    to_scheduler();
  }
}

Fiber& new_fiber() {
  Fiber& fiber = *fibers.emplace_back(std::make_unique<Fiber>());
  fiber.stack = std::make_unique_for_overwrite<char[]>(kStack);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, work, 0);
  return fiber;
}

void resume(Fiber& fiber) {
  running = &fiber;
  if (!fiber.idle) {
    const Thread& thread = cuda_threads[current()];
    threadIdx = thread.index;
    __tsan_switch_to_fiber(thread.tsan, kNoSync);
  }
  fiber.idle = false;
  swapcontext(&scheduler, &fiber.context);
}

void run_block() {
  begun = ended = 0;
  __tsan_release(&start);
  for (size_t k = 0; begun < threads; ++k) resume(k < fibers.size() ? *fibers[k] : new_fiber());
  while (ended < threads) {
    for (const auto& fiber : fibers) {
      if (!fiber->idle) resume(*fiber);
    }
    if (!std::exchange(progress, false)) misuse("threads wait for others that have ended");
  }
  __tsan_acquire(&end);
}

}  // namespace

cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, void (*f)(const void*),
                const void* c) {
  const std::lock_guard lock(one_launch);
  const unsigned long before = check_launch(config, kernel);
  const dim3 shape = config.blockDim;
  threads = shape.x * shape.y * shape.z;
  if (config.gridDim.x == 0 || threads == 0 || threads > kMaxThreads) {
    return last_error = cudaErrorInvalidConfiguration;
  }
  gridDim = config.gridDim, blockDim = shape, body = f, context = c;
  scheduler_tsan = __tsan_get_current_fiber();
  while (cuda_threads.size() < threads) cuda_threads.emplace_back();
  for (unsigned t = 0; t < threads; ++t) {
    cuda_threads[t].index = {t % shape.x, t / shape.x % shape.y, t / (shape.x * shape.y)};
  }
  for (unsigned b = 0; b < config.gridDim.x; ++b) {
    blockIdx = {b, 0, 0};
    backwards = (before + b) % 2;
    run_block();
  }
  return cudaSuccess;
}

void sync_threads(int place) {
  if (block.arrived == 0) block_place = place;
  if (place != block_place) misuse("threads of a block wait at different barriers");
  __tsan_release(&block);
  meet(block, threads);
  __tsan_acquire(&block);
}

// A shuffle orders nothing but itself.
void shuffle_down(void* value, unsigned bytes, unsigned mask, unsigned delta) {
  if (mask != 0xffffffffu || threads % kWarp) misuse("a shuffle among a part of a warp");
  const unsigned warp = current() / kWarp, lane = current() % kWarp;
  auto& row = slots[warps[warp].round % 2][warp];
  std::memcpy(&row[lane], value, bytes);
  meet(warps[warp], kWarp);
  if (lane + delta < kWarp) std::memcpy(value, &row[lane + delta], bytes);
}

}  // namespace cuda_host

cudaError_t cudaGetLastError() { return std::exchange(cuda_host::last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
