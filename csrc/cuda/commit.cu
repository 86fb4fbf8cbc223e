// commit_: one thread to a position.
#include "cuda/arguments.h"
#include "cuda/block.h"

namespace dlmk {

template <class Block>
DLMK_BLOCK_FN void commit(Block& block, NoShared&, const CommitArguments& a, int64_t block_index) {
  const int64_t index = block_index * block.size() + block.rank();
  if (index >= a.B * a.L) return;
  const int64_t b = index / a.L, l = index % a.L;
  if (row_value<bool>(a.selected, b, l)) row_value<int64_t>(a.tokens, b, l) = row_value<int64_t>(a.proposal, b, l);
}

}  // namespace dlmk

DLMK_KERNEL(dlmk_commit, CommitArguments, dlmk::NoShared, 256, 1, dlmk::commit)
