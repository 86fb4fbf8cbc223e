// revoke_: the rules of common/select.h, a row after the other.
#include <vector>

#include "cpu/arguments.h"
#include "cpu/single_thread.h"

namespace dlmk {
namespace {

int64_t revoke(const DlmkRevokeArgs& a, int64_t b, uint64_t* keys) {
  const auto value = [b](int64_t rule) { return rule ? address<int64_t>(rule)[b] : 0; };
  const RevokeRules rules = {a.threshold != 0,
                             a.quota != 0,
                             a.committed != 0,
                             a.threshold ? address<float>(a.threshold)[b] : 0.0f,
                             value(a.quota),
                             value(a.committed)};
  const auto candidate = [&](int64_t l) {
    return at<int64_t>(a.tokens, b, l) != a.mask_id && (!a.eligible.data || at<bool>(a.eligible, b, l));
  };
  const auto drawn = [&](int64_t l) {
    return a.probability.data &&
           revoked_by_chance(draw_key(a.seed, a.row_ids, a.step, b, l), at<float>(a.probability, b, l));
  };
  bool* const revoked = reinterpret_cast<bool*>(a.revoked) + b * a.L;
  SingleThread block;
  const int64_t remasked = revoke_row(
      block, rules, a.L, candidate, [&](int64_t l) { return at<float>(a.confidence, b, l); }, drawn, keys, revoked);
  for (int64_t l = 0; l < a.L; ++l)
    if (revoked[l]) row_value<int64_t>(a.tokens, b, l) = a.mask_id;
  return remasked;
}

}  // namespace
}  // namespace dlmk

int dlmk_revoke(const DlmkRevokeArgs* args) {
  return dlmk::status_of([&] {
    std::vector<uint64_t> keys(static_cast<size_t>(args->L));  // nothing is written if memory runs out
    for (int64_t b = 0; b < args->B; ++b)
      reinterpret_cast<int32_t*>(args->remasked)[b] = int32_t(dlmk::revoke(*args, b, keys.data()));
  });
}
