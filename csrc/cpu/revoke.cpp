// revoke_: the union of what the rules choose, cut to fewer than `committed`.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/arguments.h"

namespace dlmk {
namespace {

constexpr uint32_t kRevokeStream = 2;

class RowRevoker {
 public:
  RowRevoker(const DlmkRevokeArgs& args, int64_t b, std::vector<uint64_t>& keys)
      : a_(args), b_(b), keys_(keys), revoked_(reinterpret_cast<bool*>(args.revoked) + b * args.L) {}

  int32_t run() {
    for (int64_t l = 0; l < a_.L; ++l) revoked_[l] = candidate(l) && (below_threshold(l) || drawn(l));
    if (a_.quota) {
      rank([&](int64_t l) { return candidate(l); });
      for (size_t i = 0; i < keys_.size() && int64_t(i) < address<int64_t>(a_.quota)[b_]; ++i) revoked_[position(i)] = true;
    }
    if (a_.committed) {
      rank([&](int64_t l) { return revoked_[l]; });
      const int64_t most = std::max<int64_t>(address<int64_t>(a_.committed)[b_] - 1, 0);
      for (size_t i = size_t(most); i < keys_.size(); ++i) revoked_[position(i)] = false;
    }
    int32_t remasked = 0;
    for (int64_t l = 0; l < a_.L; ++l) {
      if (!revoked_[l]) continue;
      element<int64_t>(a_.tokens, b_, l) = a_.mask_id;
      ++remasked;
    }
    return remasked;
  }

 private:
  bool candidate(int64_t l) const {
    return at<int64_t>(a_.tokens, b_, l) != a_.mask_id && (!a_.eligible.data || at<bool>(a_.eligible, b_, l));
  }

  bool below_threshold(int64_t l) const {
    return a_.threshold && at<float>(a_.confidence, b_, l) < address<float>(a_.threshold)[b_];
  }

  bool drawn(int64_t l) const {
    if (!a_.probability.data) return false;
    const DrawKey key = draw_key(a_.seed, a_.row_ids, a_.step, b_, l);
    return uniform_from_word(keyed_words(key, kRevokeStream, 0).w[0]) < at<float>(a_.probability, b_, l);
  }

  // keys_: the chosen positions by confidence, lowest first, then by position; NaN as +inf.
  template <class Chosen>
  void rank(Chosen chosen) {
    keys_.clear();
    for (int64_t l = 0; l < a_.L; ++l) {
      if (!chosen(l)) continue;
      const float confidence = at<float>(a_.confidence, b_, l);
      keys_.push_back(uint64_t(ordered_bits(confidence != confidence ? INFINITY : confidence)) << 32 | uint64_t(l));
    }
    std::sort(keys_.begin(), keys_.end());
  }

  int64_t position(size_t rank) const { return int64_t(keys_[rank] & 0xffffffffu); }

  const DlmkRevokeArgs& a_;
  const int64_t b_;
  std::vector<uint64_t>& keys_;
  bool* revoked_;
};

}  // namespace
}  // namespace dlmk

int dlmk_revoke(const DlmkRevokeArgs* args) {
  return dlmk::status_of([&] {
    std::vector<uint64_t> keys;
    keys.reserve(size_t(args->L));  // nothing is written if memory runs out
    for (int64_t b = 0; b < args->B; ++b)
      reinterpret_cast<int32_t*>(args->remasked)[b] = dlmk::RowRevoker(*args, b, keys).run();
  });
}
