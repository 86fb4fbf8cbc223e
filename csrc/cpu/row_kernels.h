// A row from its logits to its scores, in the steps that RowKernels names.
#pragma once

#include "cpu/draw.h"
#include "cpu/filters.h"

namespace dlmk {

static inline bool samples(const RowTask& task) { return task.temperature > 0.0f; }

static inline bool uses_top_k(const RowTask& task) { return task.top_k > 0 && task.top_k < task.vocabulary; }

static inline bool uses_top_p(const RowTask& task) { return !(task.top_p >= 1.0f); }

// Are the statistics of another distribution than softmax(x)?
static inline bool scaled_statistics(const RowTask& task) {
  return task.sampling_statistics &&
         ((samples(task) && task.temperature != 1.0f) || uses_top_k(task) || uses_top_p(task));
}

template <class V, class E>
static void survey(const RowTask* task, RowScratch* scratch, int32_t begin, int32_t end, bool eager) {
  float highest = -INFINITY;
  for (int32_t c = begin; c < end; ++c) {
    with_chunk<V, E>(*task, scratch, c, [&](const auto* p, int n) {
      const float m = max_of_chunk<V>(p, n);
      scratch->chunk_max[c] = m;
      scratch->chunk_s[c] = 0.0f;
      if (m > highest) highest = m;
      if (eager && part_counts(m, highest)) sums_of_chunk<V>(p, n, m, &scratch->chunk_s[c], &scratch->chunk_t[c]);
    });
  }
}

template <class V, class E>
static int64_t find_in_row(const RowTask& task, RowScratch* scratch, int32_t c, float m) {
  int at = 0;
  with_chunk<V, E>(task, scratch, c, [&](const auto* p, int n) { at = find_in_chunk<V>(p, n, m); });
  return int64_t(c) * CHUNK + at;
}

// A row whose maximum is not finite. First NaN chunk `nan_chunk` or -1; first chunk of the maximum.
template <class V, class E>
static RowScores settle_special(const RowTask& task, RowScratch* scratch, int32_t nan_chunk, int32_t top_chunk, float m) {
  if (nan_chunk >= 0) {
    int at = 0;
    with_chunk<V, E>(task, scratch, nan_chunk, [&](const auto* p, int) {
      while (widen(p[at]) == widen(p[at])) ++at;
    });
    return nan_row(int64_t(nan_chunk) * CHUNK + at);
  }
  if (m < 0.0f) return empty_row();
  int64_t count = 0;
  for (int32_t c = top_chunk; c < task.chunks; ++c) {
    if (scratch->chunk_max[c] != m) continue;
    with_chunk<V, E>(task, scratch, c, [&](const auto* p, int n) { over_hits<V>(p, n, m, [&](int, float) { ++count; }); });
  }
  return infinite_row(find_in_row<V, E>(task, scratch, top_chunk, m), count);
}

template <class V, class E>
static bool settle(const RowTask* task, RowScratch* scratch, RowState* state, RowScores* out) {
  float m = scratch->chunk_max[0], second = -INFINITY;
  int32_t top_chunk = 0, nan_chunk = m == m ? -1 : 0;
  for (int32_t c = 1; c < task->chunks; ++c) {
    const float chunk_max = scratch->chunk_max[c];
    if (chunk_max > m) {
      second = m;
      m = chunk_max;
      top_chunk = c;
    } else if (chunk_max > second) {
      second = chunk_max;
    } else if (chunk_max != chunk_max && nan_chunk < 0) {
      nan_chunk = c;
    }
  }
  if (nan_chunk >= 0 || !(fabsf(m) < INFINITY)) {
    *out = settle_special<V, E>(*task, scratch, nan_chunk, top_chunk, m);
    return true;
  }
  with_chunk<V, E>(*task, scratch, top_chunk, [&](const auto* p, int n) {
    const int at = find_in_chunk<V>(p, n, m);
    state->top = int64_t(top_chunk) * CHUNK + at;
    if (second < m) {  // otherwise another chunk has it already
      const float before = at > 0 ? max_of_chunk<V>(p, at) : -INFINITY;
      const float after = at + 1 < n ? max_of_chunk<V>(p + at + 1, n - at - 1) : -INFINITY;
      const float runner_up = before > after ? before : after;
      second = runner_up > second ? runner_up : second;
    }
  });
  state->m = m;
  state->second = second;
  state->cut = -INFINITY;
  state->scaled = scaled_statistics(*task);
  state->scale = 1.0f;
  state->token = state->top;
  state->token_logit = m;
  const float t = samples(*task) ? task->temperature : 1.0f;
  if (samples(*task) || state->scaled) {
    if (uses_top_k(*task)) state->cut = top_k_cut<V, E>(*task, scratch);
    if (uses_top_p(*task)) {
      const float least = task->top_p_first ? -INFINITY : state->cut;
      const float cut = top_p_cut<V, E>(*task, scratch, m, t, least);
      if (cut > state->cut) state->cut = cut;
    }
    state->scale = 1.0f / t < 3e38f ? 1.0f / t : 3e38f;
  }
  if (samples(*task)) {
    state->best = -INFINITY;
    offer_alone(*task, state, state->top, m);
    draw_rows_chunks<V, E>(task, scratch, state, top_chunk, top_chunk + 1);
  }
  return false;
}

template <class V, class E>
static void sum(const RowTask* task, RowScratch* scratch, const RowState* state, int32_t begin, int32_t end) {
  for (int32_t c = begin; c < end; ++c) {
    const float chunk_max = scratch->chunk_max[c];
    float *s = &scratch->chunk_s[c], *t = &scratch->chunk_t[c];
    if (state->scaled) {
      *s = 0.0f;
      if (!(chunk_max >= state->cut && part_counts((chunk_max - state->m) * state->scale, 0.0f))) continue;
      with_chunk<V, E>(*task, scratch, c, [&](const auto* p, int n) {
        scaled_sums_of_chunk<V>(p, n, state->m, state->scale, state->cut, s, t);
      });
    } else if (*s == 0.0f && part_counts(chunk_max, state->m)) {
      with_chunk<V, E>(*task, scratch, c, [&](const auto* p, int n) { sums_of_chunk<V>(p, n, chunk_max, s, t); });
    }
  }
}

template <class V, class E>
static RowScores finish(const RowTask* task, RowScratch* scratch, RowState* state) {
  RowSums sums = {0.0, 0.0};
  int32_t counted = 0;
  for (int32_t c = 0; c < task->chunks; ++c) {
    if (state->scaled) {
      sums.s += scratch->chunk_s[c];
      if (scratch->chunk_s[c] > 0.0f) sums.t += scratch->chunk_t[c];
    } else if (part_counts(scratch->chunk_max[c], state->m)) {
      ++counted;
      merge_part(&sums, double(scratch->chunk_max[c]) - state->m, scratch->chunk_s[c], scratch->chunk_t[c]);
    }
  }
  scratch->lazy = !state->scaled && 2 * counted < task->chunks;
  const double t = state->scaled && samples(*task) ? task->temperature : 1.0;
  const double second = state->second >= state->cut || !state->scaled ? state->second : -INFINITY;
  return finish_row(state->token, sums, state->m / t, (double(state->token_logit) - state->m) / t, (second - state->m) / t);
}

template <class V, class E>
static RowScores score(const RowTask* task, RowScratch* scratch) {
  RowScores out;
  RowState state;
  scratch->held_chunk = -1;
  survey<V, E>(task, scratch, 0, task->chunks, !scaled_statistics(*task) && (task->chunks == 1 || !scratch->lazy));
  if (settle<V, E>(task, scratch, &state, &out)) return out;
  if (samples(*task)) draw_rows_chunks<V, E>(task, scratch, &state, 0, task->chunks);
  if (state.scaled || scratch->lazy) sum<V, E>(task, scratch, &state, 0, task->chunks);
  return finish<V, E>(task, scratch, &state);
}

template <class V, class E>
constexpr RowKernels row_kernels() {
  return {score<V, E>, survey<V, E>, settle<V, E>, draw_rows_chunks<V, E>, sum<V, E>, finish<V, E>};
}

template <class V>
static void portable_exp_array(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float lanes[V::WIDTH];
    for (int j = 0; j < V::WIDTH; ++j) lanes[j] = x[i];
    V::store(lanes, portable_exp_lanes<V>(V::load(lanes)));
    y[i] = lanes[V::WIDTH - 1];
  }
}

template <class V>
static void philox_array(const RowKey* key, uint32_t first_block, int32_t blocks, uint32_t* words) {
  for (int32_t b = 0; b < blocks; b += V::BLOCKS) {
    typename V::L even[4], odd[4];
    philox_lanes<V>(*key, first_block + uint32_t(b), even, odd);
    for (int w = 0; w < 4; ++w) {
      uint32_t found[V::BLOCKS];
      V::store_words(found, even[w], odd[w]);
      for (int j = 0; j < V::BLOCKS && b + j < blocks; ++j) words[int64_t(w) * blocks + b + j] = found[j];
    }
  }
}

template <class V>
constexpr InstructionSet instruction_set(const char* name) {
  return {name,
          {row_kernels<V, float>(), row_kernels<V, Bf16>(), row_kernels<V, Fp16>()},
          portable_exp_array<V>,
          philox_array<V>};
}

}  // namespace dlmk
