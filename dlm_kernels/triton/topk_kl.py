"""How far a distribution over the vocabulary moved, from the few probabilities that were kept.

1. `summarise`: of every tile its maximum, where that is, and the sum of e^(x - maximum). Reads the logits.
2. `keep`: k times the best of the tiles' maxima, and the tile that had it once more for its next best and its sum without the
   one taken: no sort, and k tiles read instead of the row. What remains in the sums in the end is the sum of all others.
3. With a step before: `exclude` sums without that step's tokens, from the tiles that hold them; `compare` has the divergence.

A sum stays relative to its own tile's maximum: a rest far below the best logit is not lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.triton.portable_math import widen
from dlm_kernels.triton.rows import INFINITY, NAN, NOWHERE
from dlm_kernels.triton.runtime import CROWD, launch, split, tiling, warps

COMPARED = 64  # rows whose divergence a program sums


@triton.jit
def rows_of(rows, count, ROWS: tl.constexpr):
    """(number, pointer, live) of this program's rows; rows: pointer and stride."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return r, rows[0] + r * rows[1], r < count


@triton.jit
def load_entries(row, live, v, vocabulary):
    """fp32 of entries v [ROWS, BLOCK]; -inf beyond the vocabulary."""
    return widen(tl.load(row[:, None] + v, mask=live[:, None] & (v < vocabulary), other=-INFINITY))


@triton.jit
def maximum_and_sum(x, v, counts):
    """(maximum, its lowest index, sum of e^(x - maximum)) of those entries of a tile that count, none of them NaN or inf.

    The index is NOWHERE if nothing counts. An entry of -inf counts, but adds nothing to the sum.
    """
    x = tl.where(counts, x, -INFINITY)
    m = tl.max(x, 1)
    i = tl.min(tl.where(counts & (x == m[:, None]), v, NOWHERE), 1)
    y = x - tl.where(m == -INFINITY, 0.0, m)[:, None]
    return m, i, tl.sum(tl.exp(y), 1)


@triton.jit
def log_of_sums(m, s):
    """(top, log of sum s e^(m - top)) over the tiles, fp64 [ROWS] of [ROWS, TILES]; (0, -inf) of nothing.

    Two numbers, as their sum would lose the second next to huge logits.
    """
    top = tl.max(m, 1)
    nothing = top == -INFINITY
    top = tl.where(nothing, 0.0, top).to(tl.float64)
    total = tl.sum(s.to(tl.float64) * tl.exp(m.to(tl.float64) - top[:, None]), 1)
    return top, tl.where(nothing, -INFINITY, tl.log(tl.where(nothing, 1.0, total)))


@triton.jit
def load_sums(states, r, tiles, live, TILES: tl.constexpr):
    """(maximum, sum) of a row's tiles, [ROWS, TILES], where they are in memory, and which are there."""
    tile = tl.arange(0, TILES)[None, :]
    at = r[:, None] * tiles + tile
    there = live[:, None] & (tile < tiles)
    m = tl.load(states[0] + at, mask=there, other=-INFINITY)
    return m, tl.load(states[1] + at, mask=there, other=0.0), at, there


@triton.jit(do_not_specialize=["count", "tiles", "each"])
def summarise_kernel(rows, states, count, vocabulary, tiles, each, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A tile with NaN or inf has the maximum inf: its row has no distribution."""
    r, row, live = rows_of(rows, count, ROWS)
    first = tl.program_id(1) * each
    for tile in range(first, tl.minimum(first + each, tiles)):
        v = tile * BLOCK + tl.arange(0, BLOCK)[None, :]
        x = load_entries(row, live, v, vocabulary)
        broken = tl.max(((x != x) | (x == INFINITY)).to(tl.int32), 1) > 0
        m, i, s = maximum_and_sum(x, v, (v < vocabulary) & (x < INFINITY))
        tl.store(states[0] + r * tiles + tile, tl.where(broken, INFINITY, m), mask=live)
        tl.store(states[1] + r * tiles + tile, s, mask=live)
        tl.store(states[2] + r * tiles + tile, i, mask=live)


@triton.jit(do_not_specialize=["count", "tiles", "k"])
def keep_kernel(
    rows, states, ids, log_probs, totals, count, vocabulary, tiles, k,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    r, row, live = rows_of(rows, count, ROWS)
    m, s, at, there = load_sums(states, r, tiles, live, TILES)
    i = tl.load(states[2] + at, mask=there, other=NOWHERE)
    top = tl.max(m, 1)
    ordinary = tl.abs(top) < INFINITY
    works = live & ordinary
    m = tl.where(works[:, None], m, -INFINITY)
    highest, log_total = log_of_sums(m, s)
    log_total = tl.where(works, log_total, 0.0)
    tl.store(totals + r, tl.where(ordinary, log_total, NAN), mask=live)
    tile = tl.arange(0, TILES)[None, :]
    for j in range(k):
        best = tl.max(m, 1)
        id = tl.min(tl.where(m == best[:, None], i, NOWHERE), 1)
        value = best.to(tl.float64) - highest - log_total
        tl.store(log_probs + r * (k + 1) + j, tl.where(ordinary, value, NAN).to(tl.float32), mask=live)
        tl.store(ids + r * k + j, tl.where(works, id, j).to(tl.int64), mask=live)
        # The tile again: what comes after this entry, by value and then by id.
        mine = id // BLOCK
        v = mine[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        x = load_entries(row, works, v, vocabulary)
        after = (x < best[:, None]) | ((x == best[:, None]) & (v > id[:, None]))
        next_m, next_i, next_s = maximum_and_sum(x, v, after & (v < vocabulary))
        here = works[:, None] & (tile == mine[:, None])
        m, i, s = (
            tl.where(here, next_m[:, None], m),
            tl.where(here, next_i[:, None], i),
            tl.where(here, next_s[:, None], s),
        )
    top, log_rest = log_of_sums(m, s)
    rest = top - highest + log_rest - log_total
    rest = tl.where(ordinary | (k == vocabulary), rest, NAN)  # no others, no doubt about them
    tl.store(log_probs + r * (k + 1) + k, rest.to(tl.float32), mask=live)


@triton.jit(do_not_specialize=["count", "tiles", "kept"])
def exclude_kernel(
    rows, states, totals, before_ids, references, rests, count, vocabulary, tiles, kept,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """What log probabilities count from, the row's maximum, and that of all but the step before's tokens."""
    r, row, live = rows_of(rows, count, ROWS)
    m, s, _at, _there = load_sums(states, r, tiles, live, TILES)
    log_total = tl.load(totals + r, mask=live, other=0.0)
    works = live & (log_total == log_total)
    m = tl.where(works[:, None], m, -INFINITY)
    highest = tl.max(tl.where(works[:, None], m, 0.0), 1).to(tl.float64)
    tl.store(references + r, highest, mask=live)
    tile = tl.arange(0, TILES)[None, :]
    for j in range(kept):
        id = tl.load(before_ids + r * kept + j, mask=works, other=-1)
        known = (id >= 0) & (id < vocabulary)
        mine = (id // BLOCK).to(tl.int32)
        v = mine[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        x = load_entries(row, known, v, vocabulary)
        for i in range(kept):
            without = tl.load(before_ids + r * kept + i, mask=known, other=-1)
            x = tl.where(v == without[:, None], -INFINITY, x)
        tile_m, _, tile_s = maximum_and_sum(x, v, v < vocabulary)
        here = known[:, None] & (tile == mine[:, None])
        m, s = tl.where(here, tile_m[:, None], m), tl.where(here, tile_s[:, None], s)
    top, log_rest = log_of_sums(m, s)
    tl.store(rests + r, top - highest + log_rest - tl.where(works, log_total, 0.0), mask=live)


@triton.jit
def divergence(log_p, log_q):
    """p log(p / q), 0 where p is 0."""
    counts = log_p != -INFINITY
    p = tl.where(counts, log_p, 0.0)
    return tl.where(counts, tl.exp(p) * (p - log_q), 0.0)


@triton.jit(do_not_specialize=["count", "kept"])
def compare_kernel(
    rows, totals, references, rests, before_ids, before_log_probs, kl, count, vocabulary, kept, BLOCK: tl.constexpr
):
    r, row, live = rows_of(rows, count, BLOCK)
    log_total = tl.load(totals + r, mask=live, other=0.0)
    works = live & (log_total == log_total)
    reference = tl.load(references + r, mask=live, other=0.0)
    last = tl.load(before_log_probs + r * (kept + 1) + kept, mask=works, other=-INFINITY).to(tl.float64)
    total = divergence(last, tl.load(rests + r, mask=works, other=0.0))
    for j in range(kept):
        id = tl.load(before_ids + r * kept + j, mask=works, other=-1)
        known = (id >= 0) & (id < vocabulary)
        x = widen(tl.load(row + id, mask=known, other=NAN)).to(tl.float64)  # NaN for an id that is none
        p = tl.load(before_log_probs + r * (kept + 1) + j, mask=works, other=-INFINITY).to(tl.float64)
        total += divergence(p, x - reference - tl.where(works, log_total, 0.0))
    total = tl.where(total < 0.0, 0.0, total)
    tl.store(kl + r, tl.where(works, total, NAN).to(tl.float32), mask=live)


class Scratch(NamedTuple):
    states: tuple[Tensor, Tensor, Tensor]  # of tiles, [R, tiles]: maximum and sum fp32, index int32
    totals: Tensor  # logsumexp less the maximum, fp64 [R]; NaN for rows without a distribution
    references: Tensor  # the maximum, fp64 [R]
    rests: Tensor  # log probability of all but the tokens of the step before, fp64 [R]


def topk_scratch(rows: int, vocabulary: int, device: torch.device) -> Scratch:
    tiles = tiling(vocabulary).tiles
    m, s = torch.empty((2, rows, tiles), dtype=torch.float32, device=device).unbind()
    i = torch.empty((rows, tiles), dtype=torch.int32, device=device)
    return Scratch((m, s, i), *torch.empty((3, rows), dtype=torch.float64, device=device).unbind())


def topk_kl(
    logits: Tensor, k: int, before_ids: Tensor | None, before_log_probs: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See the reference."""
    shape, device = logits.shape[:-1], logits.device
    kl = torch.empty(shape, dtype=torch.float32, device=device)
    ids = torch.empty((*shape, k), dtype=torch.int64, device=device)
    log_probs = torch.empty((*shape, k + 1), dtype=torch.float32, device=device)
    scratch = topk_scratch(kl.numel(), logits.shape[-1], device)
    launch_topk_kl(logits, k, before_ids, before_log_probs, kl, ids, log_probs, scratch)
    return kl, ids, log_probs


def launch_topk_kl(
    logits: Tensor,
    k: int,
    before_ids: Tensor | None,
    before_log_probs: Tensor | None,
    kl: Tensor,
    ids: Tensor,
    log_probs: Tensor,
    scratch: Scratch,
) -> None:
    count, vocabulary = kl.numel(), logits.shape[-1]
    flat = logits.reshape(count, vocabulary)
    rows = (flat, flat.stride(0))
    shape = tiling(vocabulary)
    programs = triton.cdiv(count, shape.rows)
    shares, each = split(programs, shape.tiles, CROWD, logits.device)
    block = {"num_warps": shape.warps, "ROWS": shape.rows, "BLOCK": shape.block}
    tiles = triton.next_power_of_2(shape.tiles)
    lean = max(4, warps(shape.rows * shape.block, per_thread=8))
    launch(
        summarise_kernel, (programs, shares), rows, scratch.states, count, vocabulary, shape.tiles, each, **block
    )  # fmt: skip
    launch(
        keep_kernel, (programs,), rows, scratch.states, ids, log_probs, scratch.totals, count, vocabulary, shape.tiles, k,
        TILES=tiles, **block,
    )  # fmt: skip
    if before_ids is None or before_log_probs is None:
        kl.fill_(math.inf)
        return
    before_ids, before_log_probs = before_ids.contiguous(), before_log_probs.contiguous()
    kept = before_ids.shape[-1]
    launch(
        exclude_kernel, (programs,), rows, scratch.states, scratch.totals, before_ids, scratch.references, scratch.rests,
        count, vocabulary, shape.tiles, kept, TILES=tiles, **block | {"num_warps": lean},
    )  # fmt: skip
    launch(
        compare_kernel, (triton.cdiv(count, COMPARED),), rows, scratch.totals, scratch.references, scratch.rests,
        before_ids, before_log_probs, kl, count, vocabulary, kept, num_warps=warps(COMPARED, 1), BLOCK=COMPARED,
    )  # fmt: skip


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    def on(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    before = on(torch.int64, 4, 32, 8), on(torch.float32, 4, 32, 9)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for vocabulary in (126464, 300):
            logits = on(dtype, 4, 32, vocabulary)
            name = f"V={vocabulary} {str(dtype).removeprefix('torch.')}"
            yield name, partial(topk_kl, logits, 8, *before)
