// The rules of a row and the memory that ranks its positions.
#pragma once

#include "cuda/arguments.h"
#include "cuda/block.h"

namespace dlmk {

constexpr int kSelectThreads = 512;
constexpr int64_t kSharedKeys = 4096;  // 32 KiB; longer rows are ranked in global memory

struct SelectShared {
  uint64_t keys[kSharedKeys];
};

DLMK_FN uint64_t* keys_of(SelectShared& shared, int64_t scratch, int64_t b, int64_t L) {
  return L <= kSharedKeys ? shared.keys : reinterpret_cast<uint64_t*>(scratch) + b * padded(L);
}

DLMK_FN SelectRules rules_of(const RuleArguments& a, int64_t b) {
  const auto value = [b](const DlmkRows& rule) { return rule.data ? row_value<float>(rule, b, 0) : 0.0f; };
  int64_t best = row_value<int64_t>(a.at_least, b, 0);
  if (a.quota.data && row_value<int64_t>(a.quota, b, 0) > best) best = row_value<int64_t>(a.quota, b, 0);
  return {best,           a.threshold.data != 0,   a.strict != 0,           a.factor.data != 0, a.entropy_bound.data != 0,
          value(a.threshold), value(a.factor), value(a.entropy_bound)};
}

}  // namespace dlmk
