// Selection within a row: which positions commit, which are remasked (dlm_kernels/reference/select_positions.py, revoke.py).
//
// Written over a block: threads that share a row. A Block has
//   rank(), size()        this thread among the block's
//   sync()                a barrier; what was written before it is seen by all after it
//   total(n)              the sum of every thread's int64, given to all
//   highest(n)            the largest of them
//   clear_slots()         starts slot() over, with a barrier before and after
//   slot(), slots()       a place that no other thread gets, in any order; after a barrier, how many were given
//   sort(keys, n)         n keys in memory of the block, ascending, with a barrier before and after
// The C++ backend runs it with a block of one thread.
#pragma once

#include "common/philox.h"

#if defined(__CUDACC__)
#define DLMK_BLOCK_FN __device__ inline
#else
#define DLMK_BLOCK_FN static inline
#endif

namespace dlmk {

// Ascending keys are positions from best to worst: score descending, then position; NaN counts as -inf. No two are equal.
DLMK_FN uint64_t rank_key(float score, int64_t position) {
  if (score != score) score = -infinity();
  return uint64_t(~ordered_bits(score)) << 32 | uint64_t(position);
}

DLMK_FN int64_t ranked_position(uint64_t key) { return int64_t(key & 0xffffffffu); }

// The order of denoise_step_(score="random").
DLMK_FN float random_score(const DrawKey& key) { return keyed_uniform(key, 1); }

DLMK_FN bool revoked_by_chance(const DrawKey& key, float probability) { return keyed_uniform(key, 2) < probability; }

// One row's rules. What a rule does not have is not read.
struct SelectRules {
  int64_t best;  // the `at_least` or the `quota` best, whichever are more
  bool has_threshold, strict, has_factor, has_entropy_bound;
  float threshold, factor, entropy_bound;
};

struct RevokeRules {
  bool has_threshold, has_quota, has_committed;
  float threshold;
  int64_t quota, committed;
};

DLMK_FN bool meets_threshold(float score, const SelectRules& rules) {
  return rules.strict ? score > rules.threshold : score >= rules.threshold;
}

// c_n >= 1 - f / (n + 1), n from 1.
DLMK_FN bool meets_factor(float score, int64_t n, float factor) {
  const float quotient = factor / (float(n) + 1.0f);
  return score >= 1.0f - quotient;
}

// The largest k whose entropies without the greatest sum to the bound or less; add() takes them in rank order.
struct EntropyPrefix {
  double bound, sum;
  int64_t count, length;

  DLMK_METHOD void add(float entropy) {
    const double h = double(entropy);
    sum += h;
    count += 1;
    if (sum - h <= bound) length = count;
  }
};

// Keys of the positions that `included` names, best first; their number.
template <class Block, class Included, class Score>
DLMK_BLOCK_FN int64_t rank_positions(Block& block, int64_t L, const Included& included, const Score& score, uint64_t* keys) {
  block.clear_slots();
  for (int64_t l = block.rank(); l < L; l += block.size())
    if (included(l)) keys[block.slot()] = rank_key(score(l), l);
  block.sync();
  const int64_t count = block.slots();
  block.sort(keys, count);
  return count;
}

template <class Block>
DLMK_BLOCK_FN void mark(Block& block, const uint64_t* keys, int64_t begin, int64_t end, bool value, bool* out) {
  for (int64_t i = begin + block.rank(); i < end; i += block.size()) out[ranked_position(keys[i])] = value;
  block.sync();
}

// Fills selected[L], whatever was there. `keys` holds what Block::sort needs for L keys.
template <class Block, class Eligible, class Score, class Entropy>
DLMK_BLOCK_FN void select_row(Block& block, const SelectRules& rules, int64_t L, const Eligible& eligible, const Score& score,
                              const Entropy& entropy, uint64_t* keys, bool* selected) {
  for (int64_t l = block.rank(); l < L; l += block.size())
    selected[l] = rules.has_threshold && eligible(l) && meets_threshold(score(l), rules);
  if (rules.best > 0 || rules.has_factor) {
    const int64_t count = rank_positions(block, L, eligible, score, keys);
    int64_t best = rules.best < count ? rules.best : count;
    if (rules.has_factor) {
      int64_t length = 0;
      for (int64_t i = block.rank(); i < count; i += block.size())
        if (meets_factor(score(ranked_position(keys[i])), i + 1, rules.factor)) length = i + 1;
      length = block.highest(length);
      if (length > best) best = length;
    }
    mark(block, keys, 0, best, true, selected);
  }
  if (rules.has_entropy_bound) {
    const int64_t count = rank_positions(block, L, eligible, [&](int64_t l) { return -entropy(l); }, keys);
    EntropyPrefix prefix = {double(rules.entropy_bound), 0, 0, 0};
    if (block.rank() == 0)  // a sum in rank order is one thread's work
      for (int64_t i = 0; i < count; ++i) prefix.add(entropy(ranked_position(keys[i])));
    mark(block, keys, 0, block.highest(prefix.length), true, selected);
  }
  block.sync();
}

// Fills revoked[L]; how many. drawn(l): did chance choose this candidate?
template <class Block, class Candidate, class Confidence, class Drawn>
DLMK_BLOCK_FN int64_t revoke_row(Block& block, const RevokeRules& rules, int64_t L, const Candidate& candidate,
                                 const Confidence& confidence, const Drawn& drawn, uint64_t* keys, bool* revoked) {
  const auto doubt = [&](int64_t l) { return -confidence(l); };  // the least sure first
  int64_t count = 0;
  for (int64_t l = block.rank(); l < L; l += block.size())
    revoked[l] = candidate(l) && ((rules.has_threshold && confidence(l) < rules.threshold) || drawn(l));
  block.sync();
  if (rules.has_quota) {
    count = rank_positions(block, L, candidate, doubt, keys);
    mark(block, keys, 0, rules.quota < count ? rules.quota : count, true, revoked);
  }
  if (rules.has_committed) {  // fewer are remasked than were committed, so that every loop ends
    count = rank_positions(block, L, [&](int64_t l) { return revoked[l]; }, doubt, keys);
    const int64_t most = rules.committed > 0 ? rules.committed - 1 : 0;
    mark(block, keys, most, count, false, revoked);
    return count < most ? count : most;
  }
  count = 0;
  for (int64_t l = block.rank(); l < L; l += block.size()) count += revoked[l];
  return block.total(count);
}

}  // namespace dlmk
