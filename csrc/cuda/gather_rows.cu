// gather_rows: one block to a row of the output.
#include "cuda/copy.h"

namespace dlmk {

template <class Block>
DLMK_BLOCK_FN void gather_rows(Block& block, NoShared&, const CopyArguments& a, int64_t index) {
  const int64_t b = index / a.M, m = index % a.M, n = row_value<int64_t>(a.positions, b, m);
  copy_row(block, a, b, n >= 0 && n < a.N ? n : -1, m);
}

}  // namespace dlmk

DLMK_KERNEL(dlmk_gather_rows, CopyArguments, dlmk::NoShared, dlmk::kCopyThreads, 1, dlmk::gather_rows)
