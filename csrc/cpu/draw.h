// Gumbel-max: the sampled token is the argmax of (x - m) / temperature + Gumbel noise, lowest index on ties.
//
// The noise of an entry is a function of its index, so entries may be visited in any order, and those that cannot win need no
// noise. Three tests, each on the safe side: a chunk whose maximum cannot win with the largest noise there is; an entry
// likewise; and a random word whose noise is too small for the chunk's maximum, decided on the integer, before any logarithm.
#pragma once

#include "cpu/chunk_source.h"

namespace dlmk {

constexpr double LARGEST_GUMBEL = 22.8742;  // of word 0: -log(2^-33) = 22.87386
constexpr int FEW = 3;                      // so many entries are cheaper one by one than a group of Philox blocks

// More than what fp32 rounding can add to (x - m) / t + g, and the portable logarithms' error.
static inline double rounding_slack(double a, double b) { return 1e-5 + 1e-6 * (fabs(a) + fabs(b)); }

// Could an entry x win against `best`?
static inline bool may_win(float x, const RowTask& task, const RowState& state) {
  const double a = double((x - state.m) / task.temperature);
  return x >= state.cut && a + LARGEST_GUMBEL + rounding_slack(a, state.best) >= double(state.best);
}

// No entry below this can.
static inline float least_that_may_win(const RowTask& task, const RowState& state) {
  const double gap = double(state.best) - LARGEST_GUMBEL;
  const double below = double(task.temperature) * (gap - rounding_slack(gap, state.best));  // below m
  const double bound = double(state.m) + below - 1e-6 * (fabs(double(state.m)) + fabs(below)) - 1e-37;
  const float least = bound > -3e38 ? (bound < 3e38 ? float(bound) : 3e38f) : -INFINITY;
  return least > state.cut ? least : state.cut;
}

// No word above this gives an entry <= x enough noise.
static inline uint32_t largest_winning_word(float x, const RowTask& task, const RowState& state) {
  const double a = double((x - state.m) / task.temperature);
  const double gap = double(state.best) - a - rounding_slack(a, state.best);
  const double u = -expm1(-exp(-gap));  // g >= gap when the uniform number is <= u
  const double word = u * 4294967296.0 * (1 + 1e-6) + 2;
  return word < 4294967295.0 ? uint32_t(word) : 0xFFFFFFFFu;
}

// Takes entry v with logit x and random word `word` into account; true if it leads now.
static inline bool offer(const RowTask& task, RowState* state, int64_t v, float x, uint32_t word) {
  const float noised = (x - state->m) / task.temperature + gumbel_from_word(word);
  if (!(noised > state->best || (noised == state->best && v < state->token))) return false;
  state->best = noised;
  state->token = v;
  state->token_logit = x;
  return true;
}

static inline void offer_alone(const RowTask& task, RowState* state, int64_t v, float x) {
  offer(task, state, v, x, keyed_words(task.key, uint32_t(v >> 2), GUMBEL_STREAM).word[v & 3]);
}

// A group: the entries of the Philox blocks that are computed together.
template <class V, class E>
static inline void draw_from_chunk(const RowTask& task, RowState* state, const E* p, int n, int64_t begin, float chunk_max) {
  constexpr int GROUP = 4 * V::BLOCKS;
  float least = least_that_may_win(task, *state);
  uint32_t bound = largest_winning_word(chunk_max, task, *state);
  for (int i = 0; i < n; i += GROUP) {
    E padded[GROUP];
    const E* q = p + i;
    if (i + GROUP > n) {
      for (int j = 0; j < GROUP; ++j) {
        if (i + j < n) {
          padded[j] = p[i + j];
        } else {
          set_minus_infinity(&padded[j]);
        }
      }
      q = padded;
    }
    uint64_t entries = 0;
    for (int j = 0; j < GROUP; j += V::WIDTH) entries |= uint64_t(V::ge(V::load(q + j), V::set(least))) << j;
    if (!entries) continue;

    uint32_t words[4][V::BLOCKS];
    const bool few = __builtin_popcountll(entries) <= FEW;
    if (!few) {
      typename V::L even[4], odd[4];
      philox_lanes<V>(task.key, uint32_t((begin + i) >> 2), even, odd);
      uint32_t hits[4], any = 0;
      for (int w = 0; w < 4; ++w) any |= hits[w] = V::words_at_most(even[w], odd[w], bound);
      if (!any) continue;
      for (int w = 0; w < 4; ++w) V::store_words(words[w], even[w], odd[w]);
      uint64_t drawn = 0;
      for (int w = 0; w < 4; ++w) {
        for (uint32_t h = hits[w]; h; h &= h - 1) drawn |= uint64_t(1) << (4 * __builtin_ctz(h) + w);
      }
      entries &= drawn;
    }
    bool leads = false;
    for (; entries; entries &= entries - 1) {
      const int e = __builtin_ctzll(entries);
      if (i + e >= n) break;  // padding, when `least` is -inf
      const int64_t v = begin + i + e;
      const uint32_t word = few ? keyed_words(task.key, uint32_t(v >> 2), GUMBEL_STREAM).word[v & 3] : words[e & 3][e >> 2];
      if (few || word <= bound) leads |= offer(task, state, v, widen(q[e]), word);
    }
    if (leads) {
      least = least_that_may_win(task, *state);
      bound = largest_winning_word(chunk_max, task, *state);
    }
  }
}

template <class V, class E>
static inline void draw_rows_chunks(const RowTask* task, RowScratch* scratch, RowState* state, int32_t begin, int32_t end) {
  for (int32_t c = begin; c < end; ++c) {
    const float chunk_max = scratch->chunk_max[c];
    if (!may_win(chunk_max, *task, *state)) continue;
    with_chunk<V, E>(*task, scratch, c, [&](const auto* p, int n) {
      draw_from_chunk<V>(*task, state, p, n, int64_t(c) * CHUNK, chunk_max);
    });
  }
}

}  // namespace dlmk
