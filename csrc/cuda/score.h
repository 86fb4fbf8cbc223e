// The launch that reads the logits: a block goes through some chunks of one row and writes a part for each.
#pragma once

#include "cuda/filters.h"
#include "cuda/parts.h"

namespace dlmk {

struct BestDraw {
  float value, second;  // the noised value, and the next best one
  int32_t index;
};

struct MergeDraws {
  DLMK_METHOD BestDraw operator()(const BestDraw& a, const BestDraw& b) const {
    const bool first = a.value > b.value || (a.value == b.value && a.index <= b.index);
    const float lesser = first ? b.value : a.value, second = first ? a.second : b.second;
    return {first ? a.value : b.value, second > lesser ? second : lesser, first ? a.index : b.index};
  }
};

// Draws among the chunk's entries of at least `kept`. own: this thread's highest entry; m: the chunk's.
template <class Block, class Dtype>
DLMK_BLOCK_FN Draw draw_chunk(Block& block, ScoreShared& shared, const LogitRow<Dtype>& row, const RowParameters& p,
                              uint32_t kept, int chunk, const Top& own, float m) {
  // A value that is reached for certain: what each thread's highest entry draws. Most entries then need not draw at all.
  float reached = -infinity();
  if (own.best != 0 && own.best >> 32 >= kept && own.value() > -infinity())
    reached = (own.value() - m) / p.temperature + keyed_gumbel(p.key, own.index());
  reached = block.reduce(reached, Highest());

  BestDraw best = {-infinity(), -infinity(), 0};
  for_groups(block, shared, row, chunk, [&](int first, const float* x) {
#pragma unroll
    for (int half = 0; half < kGroup; half += 4) {
      float highest = -infinity();
#pragma unroll
      for (int k = half; k < half + 4; ++k) highest = x[k] > highest ? x[k] : highest;
      const float bound = (best.value > reached ? best.value : reached) - kClose;
      if (highest == -infinity() || !can_reach(highest, m, p.temperature, bound)) continue;
      const uint32_t limit = largest_word_for(bound - (highest - m) / p.temperature);
      const Words words = keyed_words(p.key, kGumbelStream, uint32_t((first + half) >> 2));
#pragma unroll
      for (int k = half; k < half + 4; ++k) {
        if (words.w[k - half] > limit || x[k] == -infinity() || value_bits(x[k]) < kept) continue;
        const float value = (x[k] - m) / p.temperature + gumbel_from_word(words.w[k - half]);
        best = MergeDraws()(best, {value, -infinity(), first + k});
      }
    }
  });
  best = block.reduce(best, MergeDraws());
  if (best.value == -infinity()) return {0, 0, kNoDraw};
  const float logit = row.at(best.index), noise = keyed_gumbel(p.key, best.index);
  return {logit, noise, best.value - best.second > kClose ? best.index : ~best.index};
}

template <class Block, class Dtype>
DLMK_BLOCK_FN void score_chunk(Block& block, ScoreShared& shared, const LogitRow<Dtype>& row, const RowParameters& p,
                               uint32_t counted, uint32_t drawn, int chunk, const Parts& parts, int64_t index) {
  mark_suppressed(block, shared, row, chunk);
  Top own = {0, 0};
  for_groups(block, shared, row, chunk, [&](int first, const float* x) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k)
      if (value_bits(x[k]) >= counted) own.add(value_bits(x[k]), first + k);
  });
  const Top top = block.reduce(own, MergeTops());
  const float m = top.value();

  FixedSums sums = {0, 0};
  Draw draw = {0, 0, kNoDraw};
  if (m > -infinity()) {  // neither NaN, nor empty
    for_groups(block, shared, row, chunk, [&](int, const float* x) {
      float s = 0, t = 0;
#pragma unroll
      for (int k = 0; k < kGroup; ++k)
        if (value_bits(x[k]) >= counted) add_term(x[k], m, p.scale, &s, &t);
      sums.add_group(s, t);
    });
    sums = block.reduce(sums, AddSums());
    if (p.sampled && is_finite(m)) draw = draw_chunk(block, shared, row, p, drawn, chunk, own, m);
  }
  if (block.rank() == 0) parts.put(chunk, index, top, sums, draw);
}

template <class Dtype, class Block>
DLMK_BLOCK_FN void score_parts(Block& block, ScoreShared& shared, const ScoreArguments& a, int64_t block_index) {
  const int64_t index = block_index / a.splits, split = block_index % a.splits, b = index / a.L, l = index % a.L;
  if (!is_live(a, b, l)) return;  // before any logit is read
  const LogitRow<Dtype> row(a, b, l);
  const RowParameters p = parameters_of(a, b, l);
  const Parts parts(a);
  int begin = int(row.chunks * split / a.splits), end = int(row.chunks * (split + 1) / a.splits);
  uint32_t kept = 0;
  if (p.filtered) {  // where the filters cut is decided over the whole row
    if (split != 0) return;
    begin = 0;
    end = row.chunks;
    kept = lowest_kept(block, shared, row, p, a.top_p_first != 0);
  }
  if (split == 0 && block.rank() == 0) parts.kept[index] = kept;
  for (int chunk = begin; chunk < end; ++chunk)
    score_chunk(block, shared, row, p, a.sampling_confidence ? kept : 0, kept, chunk, parts, index);
}

}  // namespace dlmk
