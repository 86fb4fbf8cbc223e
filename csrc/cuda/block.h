// A block of threads, as the kernels see it. On a GPU it is the block of the launch; compiled by a C++ compiler it is emulated
// (host_block.h), so that tests run the kernels themselves. Besides what common/select.h lists it has
//   reduce(value, op)     `op` over every thread's value, given to all; op must not depend on the order
// A kernel is a function body(block, shared, arguments, index of the block) and is declared by
//   DLMK_KERNEL(name, Arguments, Shared, most threads, blocks that should fit on a multiprocessor, body)
#pragma once

#include "common/select.h"

namespace dlmk {

struct NoShared {};

struct Sum {
  template <class T>
  DLMK_METHOD T operator()(T a, T b) const {
    return a + b;
  }
};

struct Highest {
  template <class T>
  DLMK_METHOD T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};

// Room that bitonic_sort needs for n keys.
DLMK_FN int64_t padded(int64_t n) {
  int64_t size = 1;
  while (size < n) size *= 2;
  return size;
}

// Batcher's bitonic network over keys in memory of the block, filled up to a power of two with keys that come last.
template <class Block>
DLMK_BLOCK_FN void bitonic_sort(Block& block, uint64_t* keys, int64_t n) {
  const int64_t size = padded(n);
  for (int64_t i = n + block.rank(); i < size; i += block.size()) keys[i] = ~uint64_t(0);
  block.sync();
  for (int64_t length = 2; length <= size; length *= 2)
    for (int64_t step = length / 2; step > 0; step /= 2) {
      for (int64_t pair = block.rank(); pair < size / 2; pair += block.size()) {
        const int64_t low = (pair & ~(step - 1)) * 2 + (pair & (step - 1)), high = low + step;
        const bool descending = (low & length) != 0;
        const uint64_t a = keys[low], b = keys[high];
        if ((a > b) != descending) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      block.sync();
    }
}

}  // namespace dlmk

#if defined(__CUDACC__)

namespace dlmk {

constexpr int kWarp = 32;

struct BlockMemory {
  uint64_t words[3 * kWarp];  // a value of up to 24 bytes from each warp
  unsigned slots;
};

class GpuBlock {
 public:
  __device__ explicit GpuBlock(BlockMemory& memory) : memory_(memory) {}
  __device__ int rank() const { return int(threadIdx.x); }
  __device__ int size() const { return int(blockDim.x); }
  __device__ void sync() { __syncthreads(); }

  // The number of threads is a multiple of 32.
  template <class T, class Op>
  __device__ T reduce(T value, Op op) {
    static_assert(sizeof(T) <= 24 && sizeof(T) % 4 == 0, "a reduced value is at most six words");
    for (int offset = kWarp / 2; offset > 0; offset /= 2) value = op(value, shuffled(value, offset));
    T* const of_warps = reinterpret_cast<T*>(memory_.words);
    if (rank() % kWarp == 0) of_warps[rank() / kWarp] = value;
    sync();
    value = of_warps[0];
    for (int warp = 1; warp < size() / kWarp; ++warp) value = op(value, of_warps[warp]);
    sync();
    return value;
  }

  __device__ int64_t total(int64_t n) { return reduce(n, Sum()); }
  __device__ int64_t highest(int64_t n) { return reduce(n, Highest()); }

  __device__ void clear_slots() {
    sync();
    if (rank() == 0) memory_.slots = 0;
    sync();
  }
  __device__ int64_t slot() { return int64_t(atomicAdd(&memory_.slots, 1u)); }
  __device__ int64_t slots() const { return int64_t(memory_.slots); }
  __device__ void sort(uint64_t* keys, int64_t n) { bitonic_sort(*this, keys, n); }

 private:
  template <class T>
  static __device__ T shuffled(const T& value, int offset) {
    uint32_t words[sizeof(T) / 4];
    memcpy(words, &value, sizeof(T));
    for (uint32_t& word : words) word = __shfl_xor_sync(0xffffffffu, word, offset);
    T other;
    memcpy(&other, words, sizeof(T));
    return other;
  }

  BlockMemory& memory_;
};

DLMK_BLOCK_FN void atomic_or(uint32_t* word, uint32_t bits) { atomicOr(word, bits); }

}  // namespace dlmk

#define DLMK_KERNEL(name, Arguments, Shared, most_threads, resident, body)                                    \
  extern "C" __global__ void __launch_bounds__(most_threads, resident)                                        \
      name(const __grid_constant__ Arguments arguments) {                                                     \
    __shared__ dlmk::BlockMemory memory;                                                                      \
    __shared__ Shared shared;                                                                                 \
    dlmk::GpuBlock block(memory);                                                                             \
    body(block, shared, arguments, int64_t(blockIdx.x));                                                      \
  }

#else
#include "cuda/host_block.h"
#endif
