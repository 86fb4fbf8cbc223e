// Normal numbers, in loops that become vectors of the instruction set this is compiled for: half the speed of vectors written by
// hand, a tenth of the code. Compiled with a flag of its own (build_config.py).
#pragma once

#include "cpu/kernels.h"

namespace dlmk {

static void normals_of(const DrawKey& key, int64_t first, int64_t n, float* out) {
  constexpr int kBlocks = 64;  // of four numbers each
  for (int64_t i = 0; i < n; i += 4 * kBlocks) {
    uint32_t words[4][kBlocks];
    float z[4][kBlocks];
    for (int j = 0; j < kBlocks; ++j) {
      const Words block = keyed_words(key, kNormalStream, uint32_t((first + i) >> 2) + uint32_t(j));
      for (int k = 0; k < 4; ++k) words[k][j] = block.w[k];
    }
    for (int pair = 0; pair < 4; pair += 2)
      for (int j = 0; j < kBlocks; ++j) normal_pair(words[pair][j], words[pair + 1][j], &z[pair][j], &z[pair + 1][j]);
    const int64_t size = n - i < 4 * kBlocks ? n - i : 4 * kBlocks;
    for (int64_t j = 0; j < size; ++j) out[i + j] = z[j & 3][j >> 2];
  }
}

}  // namespace dlmk
