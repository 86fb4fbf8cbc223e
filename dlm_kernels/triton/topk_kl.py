"""How far a distribution over the vocabulary moved, from the few probabilities that were kept.

1. `summarise`: of every tile its maximum, where that is, and the sum of e^(x - maximum). Reads the logits.
2. `keep`: k times the best of the tiles' maxima, and the tile that had it once more for its next best and its sum without the
   one taken: no sort, and k tiles read instead of the row. What remains in the sums in the end is the sum of all others.
3. `compare`, with a step before: the sums without that step's tokens, from the tiles that hold them, and the divergence.

A sum stays relative to its own tile's maximum: a rest far below the best logit is not lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.triton.portable_math import widen
from dlm_kernels.triton.rows import INFINITY, NAN, NOWHERE
from dlm_kernels.triton.runtime import CROWD, launch, split, tiling


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
    """log of sum s e^m over the tiles, fp64 [ROWS] of [ROWS, TILES]; -inf of nothing."""
    top = tl.max(m, 1)
    nothing = top == -INFINITY
    m, top = m.to(tl.float64), tl.where(nothing, 0.0, top).to(tl.float64)
    total = tl.sum(s.to(tl.float64) * tl.exp(m - top[:, None]), 1)
    return tl.where(nothing, -INFINITY, top + tl.log(tl.where(nothing, 1.0, total)))


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
    total = log_of_sums(m, s)
    tl.store(totals + r, tl.where(ordinary, total, NAN), mask=live)
    tile = tl.arange(0, TILES)[None, :]
    for j in range(k):
        best = tl.max(m, 1)
        id = tl.min(tl.where(m == best[:, None], i, NOWHERE), 1)
        value = best.to(tl.float64) - tl.where(works, total, 0.0)
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
    rest = log_of_sums(m, s) - tl.where(works, total, 0.0)
    rest = tl.where(ordinary | (k == vocabulary), rest, NAN)  # no others, no doubt about them
    tl.store(log_probs + r * (k + 1) + k, rest.to(tl.float32), mask=live)


@triton.jit(do_not_specialize=["count", "tiles", "kept"])
def compare_kernel(
    rows, states, totals, before_ids, before_log_probs, kl, count, vocabulary, tiles, kept,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    r, row, live = rows_of(rows, count, ROWS)
    m, s, _, _ = load_sums(states, r, tiles, live, TILES)
    total = tl.load(totals + r, mask=live, other=0.0)
    works = live & (total == total)
    m = tl.where(works[:, None], m, -INFINITY)
    tile = tl.arange(0, TILES)[None, :]
    divergence = tl.zeros((ROWS,), tl.float64)
    for j in range(kept + 1):
        p = tl.load(before_log_probs + r * (kept + 1) + j, mask=works, other=0.0).to(tl.float64)
        if j < kept:
            id = tl.load(before_ids + r * kept + j, mask=works, other=0)
            known = works & (id >= 0) & (id < vocabulary)
            q = widen(tl.load(row + id, mask=known, other=NAN)).to(tl.float64) - total  # NaN for an id that is none
            mine = (id // BLOCK).to(tl.int32)
            v = mine[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
            x = load_entries(row, known, v, vocabulary)
            for i in range(kept):
                without = tl.load(before_ids + r * kept + i, mask=known, other=-1)
                x = tl.where(v == without[:, None], -INFINITY, x)
            other_m, _, other_s = maximum_and_sum(x, v, v < vocabulary)
            here = known[:, None] & (tile == mine[:, None])
            m, s = tl.where(here, other_m[:, None], m), tl.where(here, other_s[:, None], s)
        else:
            q = log_of_sums(m, s) - total
        counts = (p != -INFINITY) & works
        divergence += tl.where(counts, tl.exp(tl.where(counts, p, 0.0)) * (tl.where(counts, p, 0.0) - q), 0.0)
    divergence = tl.where(divergence < 0.0, 0.0, divergence)
    tl.store(kl + r, tl.where(works, divergence, NAN).to(tl.float32), mask=live)


class Scratch(NamedTuple):
    states: tuple[Tensor, Tensor, Tensor]  # of tiles, [R, tiles]: maximum and sum fp32, index int32
    totals: Tensor  # logsumexp fp64 [R]


def topk_scratch(rows: int, vocabulary: int, device: torch.device) -> Scratch:
    tiles = tiling(vocabulary).tiles
    m, s = torch.empty((2, rows, tiles), dtype=torch.float32, device=device).unbind()
    i = torch.empty((rows, tiles), dtype=torch.int32, device=device)
    return Scratch((m, s, i), torch.empty(rows, dtype=torch.float64, device=device))


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
    launch(
        compare_kernel, (programs,), rows, scratch.states, scratch.totals, before_ids.contiguous(),
        before_log_probs.contiguous(), kl, count, vocabulary, shape.tiles, before_ids.shape[-1], TILES=tiles, **block,
    )  # fmt: skip


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    def on(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    before = on(torch.int64, 4, 32, 8), on(torch.float32, 4, 32, 9)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for vocabulary in (126464, 300):
            logits = on(dtype, 4, 32, vocabulary)
            name = f"V={vocabulary} {str(dtype).removeprefix('torch.')}"
            yield name, lambda logits=logits: topk_kl(logits, 8, *before)
