// A block of threads emulated on one: each thread is a fiber that runs from barrier to barrier, in an order that changes at
// every barrier. A kernel in which threads read what others write without a barrier between then gives other results for
// another `order`, and one whose threads do not all reach the same barrier aborts. Races within a warp and the memory model of
// a GPU are beyond it.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

namespace dlmk {

class Fibers {
 public:
  Fibers(int count, uint64_t order) : fibers_(size_t(count)), stacks_(size_t(count) * kStack), ids_(size_t(count)) {
    random_.seed(order);
    std::iota(ids_.begin(), ids_.end(), 0);
  }

  // Runs body(rank) for every rank.
  template <class Body>
  void run(const Body& body) {
    current() = this;
    call_ = [](const void* self, int rank) { (*static_cast<const Body*>(self))(rank); };
    body_ = &body;
    for (size_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = fibers_[i];
      fiber.started = false;
      getcontext(&fiber.entry);
      fiber.entry.uc_stack.ss_sp = stacks_.data() + i * kStack;
      fiber.entry.uc_stack.ss_size = kStack;
      fiber.entry.uc_link = nullptr;
      makecontext(&fiber.entry, reinterpret_cast<void (*)()>(&Fibers::start), 1, int(i));
    }
    for (finished_ = 0; finished_ == 0;) {
      std::shuffle(ids_.begin(), ids_.end(), random_);
      for (int id : ids_) resume(id);
      if (finished_ != 0 && finished_ != fibers_.size()) {
        std::fprintf(stderr, "%zu of %zu threads ended while the others wait at a barrier\n", finished_, fibers_.size());
        std::abort();
      }
    }
  }

  void wait() {
    if (_setjmp(fibers_[size_t(running_)].resume) == 0) _longjmp(scheduler_, 1);
  }

 private:
  static constexpr size_t kStack = 1 << 16;

  struct Fiber {
    ucontext_t entry;
    jmp_buf resume;  // setcontext makes a system call, longjmp does not
    bool started;
  };

  static Fibers*& current() {
    static thread_local Fibers* fibers = nullptr;
    return fibers;
  }

  static void start(int rank) {
    Fibers& self = *current();
    self.call_(self.body_, rank);
    ++self.finished_;
    _longjmp(self.scheduler_, 1);
  }

  __attribute__((noinline)) void resume(int id) {
    running_ = id;
    Fiber& fiber = fibers_[size_t(id)];
    if (_setjmp(scheduler_) != 0) return;  // the fiber waits, or has ended
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    setcontext(&fiber.entry);
  }

  std::vector<Fiber> fibers_;
  std::vector<char> stacks_;
  std::vector<int> ids_;
  jmp_buf scheduler_;
  std::mt19937_64 random_;
  const void* body_ = nullptr;
  void (*call_)(const void*, int) = nullptr;
  size_t finished_ = 0;
  int running_ = 0;
};

struct HostBlockMemory {
  std::vector<uint64_t> words;
  int64_t slots = 0;
};

class HostBlock {
 public:
  HostBlock(Fibers& fibers, HostBlockMemory& memory, int rank, int size)
      : fibers_(fibers), memory_(memory), rank_(rank), size_(size) {}
  int rank() const { return rank_; }
  int size() const { return size_; }
  void sync() { fibers_.wait(); }

  template <class T, class Op>
  T reduce(T value, Op op) {
    static_assert(sizeof(T) <= 24, "a reduced value is at most six words");
    T* const values = reinterpret_cast<T*>(memory_.words.data());
    values[rank_] = value;
    sync();
    if (rank_ == 0)
      for (int i = 1; i < size_; ++i) values[0] = op(values[0], values[i]);
    sync();
    value = values[0];
    sync();
    return value;
  }

  int64_t total(int64_t n) { return reduce(n, Sum()); }
  int64_t highest(int64_t n) { return reduce(n, Highest()); }

  void clear_slots() {
    sync();
    if (rank_ == 0) memory_.slots = 0;
    sync();
  }
  int64_t slot() { return memory_.slots++; }
  int64_t slots() const { return memory_.slots; }
  void sort(uint64_t* keys, int64_t n) { bitonic_sort(*this, keys, n); }

 private:
  Fibers& fibers_;
  HostBlockMemory& memory_;
  int rank_, size_;
};

static inline void atomic_or(uint32_t* word, uint32_t bits) { *word |= bits; }

// One block after the other, in an order of no meaning; shared memory starts with rubbish, as on a GPU.
template <class Shared, class Arguments, class Body>
void emulate(const Arguments& arguments, int64_t blocks, int threads, uint64_t order, const Body& body) {
  Fibers fibers(threads, order);
  HostBlockMemory memory;
  memory.words.resize(size_t(3 * threads));
  std::vector<uint64_t> storage(sizeof(Shared) / 8 + 1);
  Shared& shared = *reinterpret_cast<Shared*>(storage.data());
  std::vector<int64_t> indices(static_cast<size_t>(blocks));
  std::iota(indices.begin(), indices.end(), int64_t(0));
  std::shuffle(indices.begin(), indices.end(), std::mt19937_64(order));
  for (int64_t index : indices) {
    std::fill(storage.begin(), storage.end(), 0x5555555555555555u);
    fibers.run([&](int rank) {
      HostBlock block(fibers, memory, rank, threads);
      body(block, shared, arguments, index);
    });
  }
}

}  // namespace dlmk

#define DLMK_KERNEL(name, Arguments, Shared, most_threads, resident, body)                                  \
  extern "C" int name(const Arguments* arguments, int64_t blocks, int threads, uint64_t order) {            \
    if (threads > most_threads) return 1;                                                                   \
    dlmk::emulate<Shared>(*arguments, blocks, threads, order, [](auto& block, Shared& shared, const Arguments& a, \
                                                                 int64_t index) { body(block, shared, a, index); }); \
    return 0;                                                                                               \
  }
