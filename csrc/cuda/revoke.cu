// revoke_: one block to a batch row.
#include "cuda/select.h"

namespace dlmk {

template <class Block>
DLMK_BLOCK_FN void revoke(Block& block, SelectShared& shared, const RevokeArguments& a, int64_t b) {
  bool* const revoked = reinterpret_cast<bool*>(a.revoked) + b * a.L;
  const auto value = [b](const DlmkRows& rule) { return rule.data ? row_value<int64_t>(rule, b, 0) : 0; };
  const RevokeRules rules = {a.threshold.data != 0,
                             a.quota.data != 0,
                             a.committed.data != 0,
                             a.threshold.data ? row_value<float>(a.threshold, b, 0) : 0.0f,
                             value(a.quota),
                             value(a.committed)};
  const auto candidate = [&](int64_t l) {
    return row_value<int64_t>(a.tokens, b, l) != a.mask_id && (!a.eligible.data || row_value<bool>(a.eligible, b, l));
  };
  const auto drawn = [&](int64_t l) {
    if (!a.probability.data) return false;
    const DrawKey key = {row_value<int64_t>(a.seed, b, l), row_value<int64_t>(a.row_ids, b, l),
                         row_value<int64_t>(a.step, b, l)};
    return revoked_by_chance(key, row_value<float>(a.probability, b, l));
  };
  const int64_t remasked = revoke_row(
      block, rules, a.L, candidate, [&](int64_t l) { return row_value<float>(a.confidence, b, l); }, drawn,
      keys_of(shared, a.keys, b, a.L), revoked);
  for (int64_t l = block.rank(); l < a.L; l += block.size())
    if (revoked[l]) row_value<int64_t>(a.tokens, b, l) = a.mask_id;
  if (block.rank() == 0) reinterpret_cast<int32_t*>(a.remasked)[b] = int32_t(remasked);
}

}  // namespace dlmk

DLMK_KERNEL(dlmk_revoke, RevokeArguments, dlmk::SelectShared, dlmk::kSelectThreads, 1, dlmk::revoke)
