// scatter_rows_: one block to a row of the input. Of several rows for one position the last is written, by its block alone.
#include "cuda/copy.h"

namespace dlmk {

template <class Block>
DLMK_BLOCK_FN void scatter_rows(Block& block, NoShared&, const CopyArguments& a, int64_t index) {
  const int64_t b = index / a.M, m = index % a.M, n = row_value<int64_t>(a.positions, b, m);
  if (n < 0 || n >= a.N) return;
  int64_t later = 0;
  for (int64_t other = m + 1 + block.rank(); other < a.M; other += block.size())
    later |= row_value<int64_t>(a.positions, b, other) == n;
  if (block.highest(later) == 0) copy_row(block, a, b, m, n);
}

}  // namespace dlmk

DLMK_KERNEL(dlmk_scatter_rows, CopyArguments, dlmk::NoShared, dlmk::kCopyThreads, 1, dlmk::scatter_rows)
