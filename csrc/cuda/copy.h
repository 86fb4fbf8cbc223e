// Copies of rows with positions of each batch row's own: one block to a row.
#pragma once

#include "cuda/arguments.h"
#include "cuda/block.h"

namespace dlmk {

constexpr int kCopyThreads = 256;

// copy(offset in the source row, offset in the target row) for every unit of a row, both in units.
template <class Block, class Copy>
DLMK_BLOCK_FN void for_units(Block& block, const CopyArguments& a, const Copy& copy) {
  int64_t count = 1;
  for (int d = 0; d < kMostDims; ++d) count *= a.sizes[d];
  for (int64_t i = block.rank(); i < count; i += block.size()) {
    int64_t rest = i, from = 0, to = 0;
#pragma unroll
    for (int d = kMostDims - 1; d > 0; --d) {
      if (a.sizes[d] == 1) continue;
      from += rest % a.sizes[d] * a.source_strides[d];
      to += rest % a.sizes[d] * a.target_strides[d];
      rest /= a.sizes[d];
    }
    copy(from + rest * a.source_strides[0], to + rest * a.target_strides[0]);
  }
}

// Row n of the source's batch row b to row n of the target's; n = -1 on the source's side: zeros.
template <class Unit, class Block>
DLMK_BLOCK_FN void copy_units(Block& block, const CopyArguments& a, int64_t b, int64_t from, int64_t to) {
  const Unit* const source = reinterpret_cast<const Unit*>(a.source) + b * a.source_b + from * a.source_n;
  Unit* const target = reinterpret_cast<Unit*>(a.target) + b * a.target_b + to * a.target_n;
  if (from < 0)
    for_units(block, a, [&](int64_t, int64_t at) { target[at] = Unit(); });
  else
    for_units(block, a, [&](int64_t i, int64_t at) { target[at] = source[i]; });
}

struct alignas(16) Sixteen {
  uint64_t low, high;
};

template <class Block>
DLMK_BLOCK_FN void copy_row(Block& block, const CopyArguments& a, int64_t b, int64_t from, int64_t to) {
  if (a.unit == 16) copy_units<Sixteen>(block, a, b, from, to);
  if (a.unit == 8) copy_units<uint64_t>(block, a, b, from, to);
  if (a.unit == 4) copy_units<uint32_t>(block, a, b, from, to);
  if (a.unit == 2) copy_units<uint16_t>(block, a, b, from, to);
  if (a.unit == 1) copy_units<uint8_t>(block, a, b, from, to);
}

}  // namespace dlmk
