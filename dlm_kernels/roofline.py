"""How many bytes and operations each op needs at least: the model behind every GB/s and every expected time.

One function per op. Each counts a perfect kernel's traffic with main memory: what the caller hands over is read once, what the
op returns or overwrites is written once, nothing in between is stored. Rows that an op need not read (positions that are not
eligible) are not counted. Not counted either: per-row settings (temperature, quota, ...), which are mostly one number for the
whole call, and masks that are None.

An operation is one arithmetic operation, comparison, exponential or logarithm. Operations of matrix products are counted apart,
as they run on other units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

INT64, INT32, FP32, BOOL = 8, 4, 4, 1
# Per logit: two maxima, the subtraction, the exponential, its sum, and the sum of products for the entropy.
STATISTICS = 7
# Ten rounds of Philox4x32 are 2 wide products (two words each), 4 xors and 2 additions of the key; four words a call.
PHILOX = 10 * (4 + 4 + 2)
UNIFORM = PHILOX + 3  # from word to (0, 1): product, sum, minimum
# A quarter of a call, the uniform number, two logarithms, and what carries the noise: division, sum, comparison.
NOISE = PHILOX // 4 + 3 + 2 + 3
SCORES = INT64 + 4 * FP32  # token, confidence, margin, entropy, logsumexp


class Traffic(NamedTuple):
    """What a call must do."""

    read: int  # bytes
    written: int  # bytes
    flops: int  # on scalar and vector units
    matrix_flops: int = 0

    @property
    def bytes(self) -> int:
        return self.read + self.written


def bytes_moved(op: str, **shape: Any) -> Traffic:
    """Bytes and operations of one call of `op`; see the function of that name in this module for its shape.

    >>> bytes_moved("score_tokens", rows=128, vocabulary=126464, itemsize=2).read
    32374784
    """
    return TRAFFIC[op](**shape)


def score_tokens(rows: int, vocabulary: int, itemsize: int, sampled: bool = False) -> Traffic:
    """`rows` that are eligible; `sampled`: temperature above 0, which needs the rows' ids and noise."""
    keys = INT64 * rows if sampled else 0
    return Traffic(
        rows * vocabulary * itemsize + keys, SCORES * rows, rows * vocabulary * (STATISTICS + (NOISE if sampled else 0))
    )


def score_hidden(rows: int, dimension: int, vocabulary: int, itemsize: int, sampled: bool = False) -> Traffic:
    """The language-model head's weight and the hidden states instead of the logits."""
    scores = score_tokens(rows, vocabulary, 0, sampled)
    read = (rows + vocabulary) * dimension * itemsize
    return Traffic(scores.read + read, scores.written, scores.flops, 2 * rows * vocabulary * dimension)


def select_positions(batch: int, length: int, entropy: bool = False) -> Traffic:
    """`entropy`: with an entropy bound. A rank takes log2(length) comparisons."""
    size = batch * length
    return Traffic(size * (FP32 + BOOL + (FP32 if entropy else 0)), size * BOOL, size * _comparisons(length))


def commit_(batch: int, length: int, selected: int) -> Traffic:
    """`selected` positions in all."""
    return Traffic(batch * length * BOOL + selected * INT64, selected * INT64, batch * length)


def denoise_step_(
    batch: int,
    length: int,
    eligible: int,
    committed: int,
    vocabulary: int,
    itemsize: int,
    sampled: bool = False,
    masked_only: bool = True,
) -> Traffic:
    """`eligible` and `committed` positions in all; `masked_only`: no `eligible` mask is given.

    Scores other than the confidence stay inside.
    """
    scores = score_tokens(eligible, vocabulary, itemsize, sampled)
    size = batch * length
    return Traffic(
        scores.read + size * (INT64 + (0 if masked_only else BOOL)),
        size * (FP32 + BOOL) + 2 * INT32 * batch + INT64 * committed,
        scores.flops + size * _comparisons(length),
    )


def keyed_uniform(count: int) -> Traffic:
    return Traffic(INT64 * count, FP32 * count, UNIFORM * count)


def revoke_(batch: int, length: int, revoked: int, masked_only: bool = True, drawn: bool = False) -> Traffic:
    """`revoked` positions in all; `drawn`: with `probability`; `masked_only`: no `eligible` mask is given."""
    size = batch * length
    read = INT64 + FP32 + (0 if masked_only else BOOL) + (INT64 if drawn else 0)
    flops = _comparisons(length) + (UNIFORM if drawn else 0)
    return Traffic(size * read, size * BOOL + INT32 * batch + INT64 * revoked, size * flops)


def absorbing_step_(batch: int, length: int, filled: int, remasked: int, vocabulary: int, itemsize: int) -> Traffic:
    """`filled` masks take a token, `remasked` tokens become masks; only the former's logits are read."""
    scores = score_tokens(filled, vocabulary, itemsize, sampled=True)
    size = batch * length
    return Traffic(
        scores.read - INT64 * filled + size * 2 * INT64,  # every position's key, of which those of `filled` are a part
        size * BOOL + INT64 * (filled + remasked),
        scores.flops + size * UNIFORM,
    )


def uniform_step_(batch: int, length: int, changed: int, vocabulary: int, itemsize: int) -> Traffic:
    """All positions eligible, `changed` of them in all."""
    size = batch * length
    scores = score_tokens(size, vocabulary, itemsize, sampled=True)
    return Traffic(
        scores.read + INT64 * size, size * BOOL + INT64 * changed, scores.flops + 2 * size * UNIFORM
    )  # a route and a state


def score_entropy_step_(batch: int, length: int, movable: int, changed: int, vocabulary: int, itemsize: int) -> Traffic:
    """`movable` positions (masks, or all on the uniform graph), `changed` of them in all.

    Per entry the exponential, two products, the sum, the clamp and the logarithm, and noise.
    """
    size = batch * length
    return Traffic(
        movable * (vocabulary * itemsize + INT64) + size * INT64,
        size * BOOL + INT64 * changed,
        movable * vocabulary * (6 + NOISE),
    )


def nearest_embedding(rows: int, dimension: int, vocabulary: int, itemsize: int) -> Traffic:
    """Norms of the table, a matrix product, and a sum and a comparison per distance."""
    return Traffic(
        (rows + vocabulary) * dimension * itemsize,
        rows * (INT64 + FP32),
        2 * vocabulary * dimension + 2 * rows * vocabulary,
        2 * rows * vocabulary * dimension,
    )


def gaussian_step_(
    batch: int, length: int, dimension: int, itemsize: int, second_order: bool = False, noisy: bool = False
) -> Traffic:
    """All positions eligible. Two products and a sum, three more for the second order; a normal number is a Box-Muller half."""
    vectors = batch * length
    size = vectors * dimension
    normal = PHILOX // 4 + 3 + 3 + 2  # words, uniform number, logarithm, root and cosine, product and sum
    return Traffic(
        size * itemsize * (3 if second_order else 2) + (INT64 * vectors if noisy else 0),
        size * itemsize,
        size * (3 + (3 if second_order else 0) + (normal if noisy else 0)),
    )


def rows_changed(batch: int, length: int, masked_only: bool = True) -> Traffic:
    """`masked_only`: no `eligible` mask is given."""
    size = batch * length
    return Traffic(size * (2 * INT64 + (0 if masked_only else BOOL)), BOOL * batch, 2 * size)


def topk_kl(rows: int, vocabulary: int, k: int, itemsize: int, before: int = 0) -> Traffic:
    """`before`: the k of the step before, 0 for none. Per logit a maximum, the logsumexp and a comparison with the k-th."""
    read = rows * vocabulary * itemsize
    if before:
        read += rows * (before * INT64 + (before + 1) * FP32)
    return Traffic(read, rows * (FP32 + k * INT64 + (k + 1) * FP32), rows * vocabulary * 5)


def cosine_rows(rows: int, dimension: int, itemsize: int) -> Traffic:
    """Three sums of products."""
    return Traffic(2 * rows * dimension * itemsize, FP32 * rows, 6 * rows * dimension)


def gather_rows(rows: int, width: int, itemsize: int) -> Traffic:
    """`rows` positions in all, each of `width` elements."""
    return Traffic(rows * (INT64 + width * itemsize), rows * width * itemsize, 0)


def scatter_rows_(rows: int, width: int, itemsize: int) -> Traffic:
    """The same, written into the cache."""
    return gather_rows(rows, width, itemsize)


def _comparisons(length: int) -> int:
    return math.ceil(math.log2(max(length, 2)))


TRAFFIC: dict[str, Callable[..., Traffic]] = {
    function.__name__: function
    for function in (
        score_tokens,
        score_hidden,
        select_positions,
        commit_,
        denoise_step_,
        keyed_uniform,
        revoke_,
        absorbing_step_,
        uniform_step_,
        score_entropy_step_,
        nearest_embedding,
        gaussian_step_,
        rows_changed,
        topk_kl,
        cosine_rows,
        gather_rows,
        scatter_rows_,
    )
}
