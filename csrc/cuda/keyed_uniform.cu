// keyed_uniform: one thread to a key.
#include "cuda/arguments.h"
#include "cuda/block.h"

namespace dlmk {

template <class Block>
DLMK_BLOCK_FN void fill_uniform(Block& block, NoShared&, const UniformArguments& a, int64_t block_index) {
  const int64_t i = block_index * block.size() + block.rank();
  if (i >= a.count) return;
  const auto word = [i](int64_t address) { return reinterpret_cast<const int64_t*>(address)[i]; };
  reinterpret_cast<float*>(a.out)[i] = keyed_uniform({word(a.seed), word(a.row_ids), word(a.step)}, uint32_t(a.stream));
}

}  // namespace dlmk

DLMK_KERNEL(dlmk_keyed_uniform, UniformArguments, dlmk::NoShared, 256, 1, dlmk::fill_uniform)
