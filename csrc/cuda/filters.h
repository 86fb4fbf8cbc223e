// top-k and top-p as one number: both keep "everything from some value up", whole groups of equal logits included
// (filter_tokens in dlm_kernels/reference/score_tokens.py). The value is found digit by digit over value_bits, by weights in
// integers, in one pass over the row for each digit.
#pragma once

#include "cuda/logits.h"

namespace dlmk {

template <class Block, class Dtype>
DLMK_BLOCK_FN uint32_t row_maximum(Block& block, ScoreShared& shared, const LogitRow<Dtype>& row) {
  uint32_t highest = 0;
  for (int chunk = 0; chunk < row.chunks; ++chunk) {
    mark_suppressed(block, shared, row, chunk);
    for_groups(block, shared, row, chunk, [&](int, const float* x) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) highest = value_bits(x[k]) > highest ? value_bits(x[k]) : highest;
    });
  }
  return block.reduce(highest, Highest());
}

// The highest value such that the weight of what is at least that value reaches a limit, as value_bits without the bits that
// the dtype does not have. Reached is the limit for `total`, the weight of all: reached(weight, total).
template <class Block, class Dtype, class Weigh, class Reached>
DLMK_BLOCK_FN uint32_t radix_select(Block& block, ScoreShared& shared, const LogitRow<Dtype>& row, const Weigh& weigh,
                                    const Reached& reached) {
  constexpr int top = 32 - kDigitBits, bottom = Dtype::kLowestBit / kDigitBits * kDigitBits;
  uint32_t prefix = 0;
  uint64_t above = 0, total = 0;
  for (int shift = top; shift >= bottom; shift -= kDigitBits) {
    for (int digit = 0; digit < kDigits; ++digit) shared.weights[digit][block.rank()] = 0;
    for (int chunk = 0; chunk < row.chunks; ++chunk) {
      mark_suppressed(block, shared, row, chunk);
      for_groups(block, shared, row, chunk, [&](int, const float* x) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          const uint32_t bits = value_bits(x[k]);
          if (((bits ^ prefix) >> shift >> kDigitBits) == 0)
            shared.weights[bits >> shift & (kDigits - 1)][block.rank()] += weigh(x[k], bits);
        }
      });
    }
    block.sync();
    for (int i = block.rank(); i < kDigits * kDigits; i += block.size()) {
      uint64_t sum = 0;
      for (int column = i % kDigits; column < block.size(); column += kDigits) sum += shared.weights[i / kDigits][column];
      shared.sums[i / kDigits][i % kDigits] = sum;
    }
    block.sync();
    const auto weight_of = [&](int digit) {
      uint64_t sum = 0;
      for (int i = 0; i < kDigits; ++i) sum += shared.sums[digit][i];
      return sum;
    };
    if (shift == top)
      for (int digit = 0; digit < kDigits; ++digit) total += weight_of(digit);
    int digit = kDigits - 1;
    for (; digit > 0; --digit) {
      const uint64_t weight = weight_of(digit);
      if (reached(above + weight, total)) break;
      above += weight;
    }
    block.sync();
    prefix |= uint32_t(digit) << shift;
  }
  return prefix;
}

// value_bits of the lowest logit that top-k and top-p leave; 0, that is all of them, in a row without a finite maximum.
template <class Block, class Dtype>
DLMK_BLOCK_FN uint32_t lowest_kept(Block& block, ScoreShared& shared, const LogitRow<Dtype>& row, const RowParameters& p,
                                   bool top_p_first) {
  const uint32_t highest = row_maximum(block, shared, row);
  const float m = value_of_bits(highest);
  if (!is_finite(m)) return 0;
  uint32_t by_k = 0, by_p = 0;
  if (p.top_k > 0 && p.top_k < row.V)
    by_k = radix_select(
        block, shared, row, [](float, uint32_t) { return uint64_t(1); },
        [&](uint64_t count, uint64_t) { return count >= uint64_t(p.top_k); });
  if (!(p.top_p >= 1)) {
    const uint32_t floor = top_p_first ? 0 : by_k;
    by_p = radix_select(
        block, shared, row,
        [&](float x, uint32_t bits) {
          const float scaled = (x - m) / p.temperature;
          return bits >= floor ? uint64_t(portable_exp(scaled) * kMassScale) : uint64_t(0);
        },
        [&](uint64_t mass, uint64_t total) { return !(double(mass) < double(p.top_p) * double(total)); });
  }
  const uint32_t lowest = by_k > by_p ? by_k : by_p;
  return lowest < highest ? lowest : highest;  // the maximum stays, whatever top_p is
}

}  // namespace dlmk
