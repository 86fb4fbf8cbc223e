// Philox4x32-10 (Salmon et al., SC 2011), keyed as dlm_kernels/reference/philox.py describes.
#pragma once

#include "common/portable_math.h"

namespace dlmk {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

struct Words {
  uint32_t w[4];
};

DLMK_FN Words philox(Words c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    uint64_t p0 = uint64_t(kPhiloxM0) * c.w[0];
    uint64_t p1 = uint64_t(kPhiloxM1) * c.w[2];
    c = {{uint32_t(p1 >> 32) ^ c.w[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c.w[3] ^ k1, uint32_t(p0)}};
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return c;
}

// What a row's draws depend on.
struct DrawKey {
  int64_t seed, row_id, step;
};

constexpr uint32_t kGumbelStream = 0;

// The words of vocabulary entries 4 * block ... 4 * block + 3.
DLMK_FN Words keyed_words(const DrawKey& key, uint32_t stream, uint32_t block) {
  Words counter = {{(stream << 24) | block, uint32_t(key.row_id), uint32_t(key.step), uint32_t(key.row_id >> 32)}};
  return philox(counter, uint32_t(key.seed), uint32_t(key.seed >> 32));
}

// One uniform number per key: the draw of index 0 of a stream.
DLMK_FN float keyed_uniform(const DrawKey& key, uint32_t stream) {
  return uniform_from_word(keyed_words(key, stream, 0).w[0]);
}

// The noise of vocabulary entry v.
DLMK_FN float keyed_gumbel(const DrawKey& key, int64_t v) {
  const Words words = keyed_words(key, kGumbelStream, uint32_t(v >> 2));
  // Shifts, as an index that is not known at compile time would put the words into memory.
  const uint64_t low = words.w[0] | uint64_t(words.w[1]) << 32, high = words.w[2] | uint64_t(words.w[3]) << 32;
  return gumbel_from_word(uint32_t((v & 2 ? high : low) >> (v & 1) * 32));
}

}  // namespace dlmk
