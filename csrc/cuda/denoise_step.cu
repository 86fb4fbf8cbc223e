// The second launch of denoise_step_, after that of score_tokens.cu: one block to a batch row merges the parts of its live
// rows of logits, selects among them, commits and counts.
#include "cuda/parts.h"
#include "cuda/select.h"

namespace dlmk {

DLMK_FN float ranked_score(const DenoiseArguments& a, const RowScores& scores, int64_t b, int64_t l) {
  if (a.score_kind == 0) return scores.confidence;
  if (a.score_kind == 1) return scores.margin;
  if (a.score_kind == 2) return -scores.entropy;
  return random_score(parameters_of(a.score, b, l).key);
}

template <class Block>
DLMK_BLOCK_FN void finish_step(Block& block, SelectShared& shared, const DenoiseArguments& a, int64_t b) {
  const int64_t L = a.score.L, row = b * L;
  int64_t* const proposal = reinterpret_cast<int64_t*>(a.proposal) + row;
  float* const ranked = reinterpret_cast<float*>(a.ranked) + row;
  float* const entropy = reinterpret_cast<float*>(a.entropy) + row;
  float* const confidence = reinterpret_cast<float*>(a.confidence) + row;
  bool* const live = reinterpret_cast<bool*>(a.live) + row;
  bool* const selected = reinterpret_cast<bool*>(a.selected) + row;

  int64_t open = 0, chosen = 0;
  for (int64_t l = block.rank(); l < L; l += block.size()) {
    live[l] = is_live(a.score, b, l);
    confidence[l] = 0.0f;
    if (!live[l]) continue;
    const RowScores scores = merge_parts(a.score, b, l);
    open += 1;
    proposal[l] = scores.token;
    confidence[l] = scores.confidence;
    entropy[l] = scores.entropy;
    ranked[l] = ranked_score(a, scores, b, l);
  }
  block.sync();
  select_row(
      block, rules_of(a.rules, b), L, [&](int64_t l) { return live[l]; }, [&](int64_t l) { return ranked[l]; },
      [&](int64_t l) { return entropy[l]; }, keys_of(shared, a.rules.keys, b, L), selected);
  for (int64_t l = block.rank(); l < L; l += block.size())
    if (selected[l]) {
      row_value<int64_t>(a.score.tokens, b, l) = proposal[l];
      chosen += 1;
    }
  open = block.total(open);
  chosen = block.total(chosen);
  if (block.rank() == 0) {
    reinterpret_cast<int32_t*>(a.committed)[b] = int32_t(chosen);
    reinterpret_cast<int32_t*>(a.remaining)[b] = int32_t(open - chosen);
  }
}

}  // namespace dlmk

DLMK_KERNEL(dlmk_finish_step, DenoiseArguments, dlmk::SelectShared, dlmk::kSelectThreads, 1, dlmk::finish_step)
