// score_tokens in two launches: parts of every live row, one block or several to a row; then one thread to a row.
#include "cuda/score.h"

namespace dlmk {

template <class Block>
DLMK_BLOCK_FN void finish_scores(Block& block, NoShared&, const ScoreTokensArguments& a, int64_t block_index) {
  const int64_t index = block_index * block.size() + block.rank();
  if (index >= a.score.B * a.score.L) return;
  const int64_t b = index / a.score.L, l = index % a.score.L;
  const RowScores scores =
      is_live(a.score, b, l) ? merge_parts(a.score, b, l) : RowScores{0, 0.0f, 0.0f, 0.0f, -infinity()};
  reinterpret_cast<int64_t*>(a.out.token)[index] = scores.token;
  reinterpret_cast<float*>(a.out.confidence)[index] = scores.confidence;
  reinterpret_cast<float*>(a.out.margin)[index] = scores.margin;
  reinterpret_cast<float*>(a.out.entropy)[index] = scores.entropy;
  reinterpret_cast<float*>(a.out.logsumexp)[index] = scores.logsumexp;
}

}  // namespace dlmk

DLMK_KERNEL(dlmk_score_fp32, ScoreArguments, dlmk::ScoreShared, dlmk::kScoreThreads, 2, dlmk::score_parts<dlmk::Fp32>)
DLMK_KERNEL(dlmk_score_bf16, ScoreArguments, dlmk::ScoreShared, dlmk::kScoreThreads, 2, dlmk::score_parts<dlmk::Bf16>)
DLMK_KERNEL(dlmk_score_fp16, ScoreArguments, dlmk::ScoreShared, dlmk::kScoreThreads, 2, dlmk::score_parts<dlmk::Fp16>)
DLMK_KERNEL(dlmk_finish_scores, ScoreTokensArguments, dlmk::NoShared, 128, 1, dlmk::finish_scores)
