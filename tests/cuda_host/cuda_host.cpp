#include <algorithm>
#include <array>
#include <barrier>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

namespace cuda_host {
namespace {

constexpr unsigned kWarpSize = 32, kMaxThreads = 1024;
constexpr int kEndOfKernel = 0;

[[noreturn]] void fail(const char* message) {
  std::fprintf(stderr, "cuda_host: %s\n", message);
  std::abort();
}

struct Warp {
  explicit Warp(unsigned size) : size(size), barrier(size) {}
  unsigned size;
  std::barrier<> barrier;
  std::array<std::array<uint64_t, kWarpSize>, 2> slots;
};

// Where the threads of the running block meet.
struct Block {
  explicit Block(unsigned threads) : places(threads), barrier(threads, Meeting{this}) {
    for (unsigned t = 0; t < threads; t += kWarpSize) {
      warps.emplace_back(std::min(kWarpSize, threads - t));
    }
  }

  struct Meeting {
    Block* block;
    void operator()() const noexcept {
      for (int place : block->places) {
        if (place != block->places[0]) fail("threads of a block wait at different barriers");
      }
    }
  };

  std::vector<int> places;
  std::barrier<Meeting> barrier;
  std::deque<Warp> warps;
};

Block* block;
thread_local unsigned thread;  // its number in the block
cudaError_t last_error;

// Threads that live on from launch to launch, for to start one takes AddressSanitizer 0.2 ms.
class Team {
 public:
  ~Team() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
  }

  // task(t) in threads t = 0, 1, ... size - 1.
  void run(unsigned size, const std::function<void(unsigned)>& task) {
    std::unique_lock lock(mutex_);
    for (auto t = static_cast<unsigned>(threads_.size()); t < size; ++t) {
      threads_.emplace_back([this, t] { work(t); });
    }
    task_ = &task;
    size_ = busy_ = size;
    ++launch_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return busy_ == 0; });
  }

 private:
  void work(unsigned t) {
    std::unique_lock lock(mutex_);
    for (unsigned seen = 0;;) {
      changed_.wait(lock, [&] { return stop_ || launch_ != seen; });
      if (stop_) return;
      seen = launch_;
      if (t >= size_) continue;
      const auto& task = *task_;
      lock.unlock();
      task(t);
      lock.lock();
      if (--busy_ == 0) changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void(unsigned)>* task_;
  unsigned size_, busy_, launch_ = 0;
  bool stop_ = false;
  std::vector<std::jthread> threads_;  // last: they end before the rest goes
};

Team team;

}  // namespace

cudaError_t run(const cudaLaunchConfig_t& config, void (*body)(const void*), const void* context) {
  const dim3 shape = config.blockDim;
  const unsigned blocks = config.gridDim.x, threads = shape.x * shape.y * shape.z;
  if (config.gridDim.y * config.gridDim.z != 1) fail("grids have one dimension here");
  if (blocks == 0 || threads == 0 || threads > kMaxThreads) {
    return last_error = cudaErrorInvalidConfiguration;
  }
  gridDim = config.gridDim;
  blockDim = shape;
  Block running(threads);
  block = &running;
  team.run(threads, [=](unsigned t) {
    thread = t;
    threadIdx = {t % shape.x, t / shape.x % shape.y, t / (shape.x * shape.y)};
    for (unsigned b = 0; b < blocks; ++b) {
      blockIdx = {b, 0, 0};
      body(context);
      sync_threads(kEndOfKernel);
    }
  });
  return cudaSuccess;
}

void sync_threads(int place) {
  block->places[thread] = place;
  block->barrier.arrive_and_wait();
}

void shuffle_down(void* value, unsigned bytes, unsigned mask, unsigned delta) {
  Warp& warp = block->warps[thread / kWarpSize];
  if (mask != 0xffffffffu || warp.size != kWarpSize) fail("a shuffle among a part of a warp");
  // Two sets of slots in turn: who writes to one again has met all that read it before.
  static thread_local unsigned turn;
  auto& slots = warp.slots[turn ^= 1];
  const unsigned lane = thread % kWarpSize;
  std::memcpy(&slots[lane], value, bytes);
  warp.barrier.arrive_and_wait();
  if (lane + delta < kWarpSize) std::memcpy(value, &slots[lane + delta], bytes);
}

}  // namespace cuda_host

cudaError_t cudaGetLastError() { return std::exchange(cuda_host::last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
