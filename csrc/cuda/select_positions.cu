// select_positions: one block to a batch row.
#include "cuda/select.h"

namespace dlmk {

template <class Block>
DLMK_BLOCK_FN void select_positions(Block& block, SelectShared& shared, const SelectArguments& a, int64_t b) {
  select_row(
      block, rules_of(a.rules, b), a.L, [&](int64_t l) { return row_value<bool>(a.eligible, b, l); },
      [&](int64_t l) { return row_value<float>(a.score, b, l); },
      [&](int64_t l) { return row_value<float>(a.entropy, b, l); }, keys_of(shared, a.rules.keys, b, a.L),
      reinterpret_cast<bool*>(a.selected) + b * a.L);
}

}  // namespace dlmk

DLMK_KERNEL(dlmk_select_positions, SelectArguments, dlmk::SelectShared, dlmk::kSelectThreads, 1, dlmk::select_positions)
