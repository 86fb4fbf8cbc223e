"""Where top-k and top-p cut a row, without a sort.

Both keep everything from some value up, so each is one number: the least key whose strictly greater entries weigh less than a
limit (their count below k; their mass below p of the total). Values are compared by integer keys of as many bits as the dtype
distinguishes: 32 for fp32, 19 for fp16, 16 for bf16. The least key is found by bisection, three pivots a pass, hence 8 passes
for bf16 and 16 for fp32; weights are integers, so that no order of summation can move the cut.

A pass reads the row from L2 (a bf16 row of 126,464 entries is 253 kB) and skips tiles whose maximum lies below the lowest
pivot: on peaked rows a few tiles remain after two passes. A tile is read in parts, as three sums an entry take registers. More
pivots a pass would save reads and cost a compare and an add an entry each; a histogram in shared memory would need atomics per
entry. One program does a row, so nothing waits for another.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dlm_kernels.triton import portable_math
from dlm_kernels.triton.portable_math import ordered_key
from dlm_kernels.triton.rows import any_of, load_tile

MASS_SCALE = tl.constexpr(2.0**36)
LEAST_KEY = tl.constexpr(-(2**31) + 1)  # below that of -inf
MASSLESS = tl.constexpr(26.0)  # e^-25 * 2^36 < 1: entries that far below the maximum have no mass


@triton.jit
def weights_above(
    row, live, m, t, least, low, middle, high, vocabulary, suppress_ids, suppressed, tiles, peaks,
    MASS: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Weight of the entries with keys above each of three pivots (ascending), among those from `least` up; int64 [ROWS]."""
    lower = tl.zeros((row.shape[0], PART), tl.int64 if MASS else tl.int32)
    between, upper = lower, lower
    for tile in range(tiles):
        peak = ordered_key(tl.load(peaks + tile, mask=live, other=0.0)) >> SHIFT
        if any_of(live & (peak > low)):
            for first in range(tile * BLOCK, (tile + 1) * BLOCK, PART):
                x, _ = load_tile(row, live, first, vocabulary, suppress_ids, suppressed, PART)
                key = ordered_key(x) >> SHIFT
                if MASS:
                    scaled = tl.div_rn(x - m[:, None], t[:, None])
                    weight = (portable_math.exp(scaled) * MASS_SCALE).to(tl.int64)
                else:
                    weight = tl.full(key.shape, 1, tl.int32)
                weight = tl.where(key >= least[:, None], weight, 0)
                lower += tl.where(key > low[:, None], weight, 0)
                between += tl.where(key > middle[:, None], weight, 0)
                upper += tl.where(key > high[:, None], weight, 0)
    return tl.sum(lower, 1).to(tl.int64), tl.sum(between, 1).to(tl.int64), tl.sum(upper, 1).to(tl.int64)


@triton.jit
def least_key(
    row, live, m, t, least, lowest, limit, vocabulary, suppress_ids, suppressed, tiles, peaks,
    MASS: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """The least key, from `lowest` up, above which there is less than `limit` (fp64) weight; int32 [ROWS]."""
    low, high = lowest.to(tl.int64), (ordered_key(m) >> SHIFT).to(tl.int64)
    while any_of(live & (low < high)):
        span = high - low
        a, b, c = low + (span >> 2), low + (span >> 1), low + (span * 3 >> 2)
        above_a, above_b, above_c = weights_above(
            row, live & (low < high), m, t, least, a.to(tl.int32), b.to(tl.int32), c.to(tl.int32),
            vocabulary, suppress_ids, suppressed, tiles, peaks, MASS, SHIFT, BLOCK, PART,
        )  # fmt: skip
        at_a, at_b, at_c = (
            above_a.to(tl.float64) < limit,
            above_b.to(tl.float64) < limit,
            above_c.to(tl.float64) < limit,
        )
        open_ = low < high
        new_high = tl.where(at_a, a, tl.where(at_b, b, tl.where(at_c, c, high)))
        new_low = tl.where(at_a, low, tl.where(at_b, a + 1, tl.where(at_c, b + 1, c + 1)))
        high, low = tl.where(open_, new_high, high), tl.where(open_, new_low, low)
    return high.to(tl.int32)


@triton.jit
def cut_of_filters(
    row, live, m, t, top_k, top_p, vocabulary, suppress_ids, suppressed, tiles, peaks,
    TOP_P_FIRST: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """The least key that both filters keep, int32 [ROWS]; below all keys where there is no filter.

    row: pointers to the rows; m, t: maximum, temperature; peaks: pointers to the maxima of the tiles; top_k int64, top_p fp32.
    """
    least = tl.full(m.shape, LEAST_KEY, tl.int32) >> SHIFT
    in_top_k = least
    uses_k = live & (top_k > 0) & (top_k < vocabulary)
    if any_of(uses_k):
        found = least_key(
            row, uses_k, m, t, least, least, top_k.to(tl.float64),
            vocabulary, suppress_ids, suppressed, tiles, peaks, False, SHIFT, BLOCK, PART,
        )  # fmt: skip
        in_top_k = tl.where(uses_k, found, least)
    in_top_p = least
    uses_p = live & ~(top_p >= 1.0)
    if any_of(uses_p):
        counted = least if TOP_P_FIRST else in_top_k
        total, _, _ = weights_above(
            row, uses_p, m, t, counted, counted - 1, counted - 1, counted - 1,
            vocabulary, suppress_ids, suppressed, tiles, peaks, True, SHIFT, BLOCK, PART,
        )  # fmt: skip
        lowest = tl.maximum(counted, ordered_key(m - t * MASSLESS) >> SHIFT)
        found = least_key(
            row, uses_p, m, t, counted, lowest, top_p.to(tl.float64) * total.to(tl.float64),
            vocabulary, suppress_ids, suppressed, tiles, peaks, True, SHIFT, BLOCK, PART,
        )  # fmt: skip
        in_top_p = tl.where(uses_p, found, least)
    return tl.maximum(in_top_k, in_top_p)
