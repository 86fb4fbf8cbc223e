"""The reverse steps of score-entropy discrete diffusion, in four launches.

1. `sum`: of every tile the sum of the scores and the highest one. Reads the log scores of the positions that can move.
2. `weigh`: of every row the weights' coefficients.
3. `draw`: of every tile the state with the best noised weight. Reads again, except tiles that cannot win.
4. `write`: the winner.

Exponentials, sums and logarithms of weights are fp64, as in the reference: scores span its whole range, and the weight of
staying is a difference. They round differently in the last place, which only a near tie shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.reference import philox as spec
from dlm_kernels.triton.philox import gumbel_noise
from dlm_kernels.triton.rows import INFINITY, NAN, NOWHERE, any_of, load_tile, per_row, program_rows, row_pointers
from dlm_kernels.triton.runtime import CROWD, launch, split, strided, tiling, warps
from dlm_kernels.triton.transitions import keys_of, per_batch_row

GUMBEL_STREAM = tl.constexpr(spec.GUMBEL_STREAM)
LARGEST_EXPONENT = tl.constexpr(709.782712893384)  # of fp64
# Noise lies in [-2.83, 22.89]: a tile whose best weight is lower by more cannot win. The rest is for roundings.
NOISE_RANGE = tl.constexpr(25.8)
TILE = 1024  # smaller than score_tokens has: fp64 takes twice the registers


@triton.jit
def exp64(x):
    """e^x of fp32 in fp64."""
    y = x.to(tl.float64)
    overflows = y > LARGEST_EXPONENT
    return tl.where(overflows, INFINITY, tl.exp(tl.where(overflows, 0.0, y)))


@triton.jit
def log64(w):
    """log w of fp64; -inf of what is negative, NaN of NaN."""
    positive = w > 0.0
    return tl.where(positive, tl.log(tl.where(positive, w, 1.0)), tl.where(w != w, w, -INFINITY))


@triton.jit
def expm1(x):
    """e^x - 1 for fp64 x >= 0: what the rounding of e^x does to the difference, it does to its logarithm (W. Kahan)."""
    e = tl.exp(tl.minimum(x, LARGEST_EXPONENT))
    plain = (e == 1.0) | (x > 1.0)
    accurate = (e - 1.0) * x / tl.log(tl.where(plain, 2.0, e))
    return tl.where(x > LARGEST_EXPONENT, INFINITY, tl.where(e == 1.0, x, tl.where(x > 1.0, e - 1.0, accurate)))


@triton.jit
def weights(delta, total, vocabulary, ABSORB: tl.constexpr, ANALYTIC: tl.constexpr, DENOISE: tl.constexpr):
    """(stay, factor, divisor, offset, transition): the weight of y is (s(y) factor / divisor - offset) transition.

    `total` is the sum of the scores without that of x_t, which is 1 by definition. See the reference for the formulas.
    """
    zero = tl.zeros_like(delta)
    one = zero + 1.0
    states = vocabulary.to(tl.float64)
    if DENOISE:
        return zero, one, one, zero, one
    elif ABSORB or not ANALYTIC:
        rate = delta
        if ABSORB and ANALYTIC:
            rate = expm1(delta)
        if not ABSORB:
            rate = delta / states
        return 1.0 - rate * total, rate, one, zero, one
    else:
        e = tl.exp(-delta)
        noise, offset = (1.0 - e) / states, (1.0 - e) / (states * e) * (total + 1.0)
        return (1.0 / e - offset) * (noise + e), one, e, offset, noise


@triton.jit
def moving_rows(tokens, eligible, mask_id, length, count, ROWS: tl.constexpr, ABSORB: tl.constexpr):
    """`program_rows`, live where the position can move, and the tokens that stand there."""
    r, b, l, live = program_rows(length, count, eligible, ROWS)  # noqa: E741
    here = per_row(tokens, b, l, live, 0)
    if ABSORB:
        live &= here == mask_id
    return r, b, l, live, here


@triton.jit(do_not_specialize=["mask_id", "length", "count", "tiles", "each"])
def sum_kernel(
    log_score, tokens, eligible, mask_id, length, count, vocabulary, tiles, each, sums, peaks,
    ABSORB: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    r, b, l, live, here = moving_rows(tokens, eligible, mask_id, length, count, ROWS, ABSORB)  # noqa: E741
    if any_of(live):
        row = row_pointers(log_score, b, l)
        first = tl.program_id(1) * each
        for tile in range(first, tl.minimum(first + each, tiles)):
            x, v = load_tile(row, live, tile * BLOCK, vocabulary, None, 0, BLOCK)
            x = tl.where(v == here[:, None], -INFINITY, x)
            tl.store(sums + r * tiles + tile, tl.sum(exp64(x), 1), mask=live)
            tl.store(peaks + r * tiles + tile, tl.max(tl.where(x != x, INFINITY, x), 1), mask=live)


@triton.jit
def weight_of(x, factor, divisor, offset, transition):
    return (exp64(x) * factor / divisor - offset) * transition


@triton.jit(do_not_specialize=["mask_id", "length", "count", "tiles"])
def weigh_kernel(
    tokens, eligible, mask_id, delta_sigma, length, count, vocabulary, tiles, sums, peaks, plan,
    ABSORB: tl.constexpr, ANALYTIC: tl.constexpr, DENOISE: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Of every row what gives the weights, and the log weight below which a tile cannot win: plan fp64 [6, rows]."""
    r, b, _l, live, _here = moving_rows(tokens, eligible, mask_id, length, count, ROWS, ABSORB)
    tile = tl.arange(0, TILES)[None, :]
    there = live[:, None] & (tile < tiles)
    total = tl.sum(tl.load(sums + r[:, None] * tiles + tile, mask=there, other=0.0), 1)
    highest = tl.max(tl.load(peaks + r[:, None] * tiles + tile, mask=there, other=-INFINITY), 1)
    stay, factor, divisor, offset, transition = weights(
        per_batch_row(delta_sigma, b, live), total, vocabulary, ABSORB, ANALYTIC, DENOISE
    )
    # A weight grows with the score, so the highest score bounds what the row has, and a tile's what the tile has.
    needed = tl.maximum(log64(stay), log64(weight_of(highest, factor, divisor, offset, transition))) - NOISE_RANGE
    needed -= tl.abs(needed) * 1e-6
    tl.store(plan + r, stay, mask=live)
    tl.store(plan + count + r, factor, mask=live)
    tl.store(plan + 2 * count + r, divisor, mask=live)
    tl.store(plan + 3 * count + r, offset, mask=live)
    tl.store(plan + 4 * count + r, transition, mask=live)
    tl.store(plan + 5 * count + r, needed, mask=live)


@triton.jit(do_not_specialize=["mask_id", "length", "count", "tiles", "each"])
def draw_kernel(
    log_score, tokens, eligible, mask_id, keys, length, count, vocabulary, tiles, each, peaks, plan, best, index,
    ABSORB: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The best noised value of every tile and its index; the first NaN counts as the best, as in argmax."""
    r, b, l, live, here = moving_rows(tokens, eligible, mask_id, length, count, ROWS, ABSORB)  # noqa: E741
    if any_of(live):
        row = row_pointers(log_score, b, l)
        seed, row_ids, step = keys_of(keys, b, l, live)
        seed, row_ids, step = seed[:, None], row_ids[:, None], step[:, None]
        stay = tl.load(plan + r, mask=live, other=0.0)
        factor = tl.load(plan + count + r, mask=live, other=0.0)
        divisor = tl.load(plan + 2 * count + r, mask=live, other=1.0)
        offset = tl.load(plan + 3 * count + r, mask=live, other=0.0)
        transition = tl.load(plan + 4 * count + r, mask=live, other=0.0)
        needed = tl.load(plan + 5 * count + r, mask=live, other=0.0)
        first = tl.program_id(1) * each
        for tile in range(first, tl.minimum(first + each, tiles)):
            peak = tl.load(peaks + r * tiles + tile, mask=live, other=-INFINITY)
            hopeless = log64(weight_of(peak, factor, divisor, offset, transition)) < needed
            matters = live & ((here // BLOCK == tile) | ~hopeless)
            value, winner = tl.full((ROWS,), -INFINITY, tl.float32), tl.full((ROWS,), NOWHERE, tl.int32)
            if any_of(matters):
                x, v = load_tile(row, matters, tile * BLOCK, vocabulary, None, 0, BLOCK)
                weight = weight_of(x, factor[:, None], divisor[:, None], offset[:, None], transition[:, None])
                weight = tl.where(v == here[:, None], stay[:, None], weight)
                noised = log64(weight).to(tl.float32)
                noised += gumbel_noise(seed, row_ids, step, tile * BLOCK, GUMBEL_STREAM, ROWS, BLOCK)
                noised = tl.where(v < vocabulary, noised, -INFINITY)
                nan = tl.min(tl.where(noised != noised, v, NOWHERE), 1)
                value = tl.max(tl.where(noised != noised, -INFINITY, noised), 1)
                winner = tl.min(tl.where((noised == value[:, None]) & (v < vocabulary), v, NOWHERE), 1)
                value = tl.where(nan < NOWHERE, NAN, value)
                winner = tl.where(nan < NOWHERE, nan, winner)
            tl.store(best + r * tiles + tile, value, mask=live)
            tl.store(index + r * tiles + tile, winner, mask=live)


@triton.jit(do_not_specialize=["mask_id", "length", "count", "tiles"])
def write_kernel(
    tokens, eligible, mask_id, length, count, tiles, best, index, changed,
    ABSORB: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    r, b, l, live, here = moving_rows(tokens, eligible, mask_id, length, count, ROWS, ABSORB)  # noqa: E741
    tile = tl.arange(0, TILES)[None, :]
    there = live[:, None] & (tile < tiles)
    value = tl.load(best + r[:, None] * tiles + tile, mask=there, other=-INFINITY)
    winner = tl.load(index + r[:, None] * tiles + tile, mask=there, other=NOWHERE)
    nan = tl.min(tl.where(value != value, winner, NOWHERE), 1)
    clean = tl.where(value != value, -INFINITY, value)
    after = tl.min(tl.where(clean == tl.max(clean, 1)[:, None], winner, NOWHERE), 1)
    # Where no weight is left, argmax takes the first entry, which a skipped tile may have had.
    after = tl.where(tl.max(clean, 1) == -INFINITY, 0, after)
    after = tl.where(live, tl.where(nan < NOWHERE, nan, after).to(tl.int64), here)
    tl.store(changed + r, after != here, mask=r < count)
    tl.store(tokens[0] + b * tokens[1] + l * tokens[2], after, mask=live)


class Scratch(NamedTuple):
    """What the launches pass on."""

    sums: Tensor  # of tiles, [B L, tiles]; fp64
    peaks: Tensor  # fp32
    best: Tensor  # fp32
    winner: Tensor  # int32
    plan: Tensor  # of rows, fp64 [6, B L]


def score_entropy_scratch(rows: int, vocabulary: int, device: torch.device) -> Scratch:
    shape = (rows, tiling(vocabulary, TILE).tiles)
    dtypes = (torch.float64, torch.float32, torch.float32, torch.int32)
    sums, peaks, best, winner = (torch.empty(shape, dtype=dtype, device=device) for dtype in dtypes)
    return Scratch(sums, peaks, best, winner, torch.empty((6, rows), dtype=torch.float64, device=device))


def score_entropy_step_(
    tokens: Tensor,
    log_score: Tensor,
    mask_id: int,
    delta_sigma: Tensor,
    method: str,
    denoise: bool,
    eligible: Tensor | None,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
) -> Tensor:
    """See the reference."""
    changed = torch.empty(tokens.shape, dtype=torch.bool, device=tokens.device)
    scratch = score_entropy_scratch(tokens.numel(), log_score.shape[-1], tokens.device)
    launch_score_entropy_step_(
        tokens, log_score, mask_id, delta_sigma, method, denoise, eligible, seed, row_ids, step, changed, scratch
    )
    return changed


def launch_score_entropy_step_(
    tokens: Tensor,
    log_score: Tensor,
    mask_id: int,
    delta_sigma: Tensor,
    method: str,
    denoise: bool,
    eligible: Tensor | None,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    changed: Tensor,  # contiguous
    scratch: Scratch,
) -> None:
    length, count, vocabulary = tokens.shape[1], tokens.numel(), log_score.shape[-1]
    shape = tiling(vocabulary, TILE)
    programs = triton.cdiv(count, shape.rows)
    shares, each = split(programs, shape.tiles, CROWD, tokens.device)
    states = triton.next_power_of_2(shape.tiles)
    x, here, live = strided(log_score), strided(tokens), strided(eligible)
    block = {"ABSORB": mask_id >= 0, "ROWS": shape.rows}
    lean = warps(shape.rows * shape.block, per_thread=8)
    launch(
        sum_kernel, (programs, shares), x, here, live, mask_id, length, count, vocabulary, shape.tiles, each,
        scratch.sums, scratch.peaks, num_warps=lean, BLOCK=shape.block, **block,
    )  # fmt: skip
    launch(
        weigh_kernel, (programs,), here, live, mask_id, (delta_sigma, delta_sigma.stride(0)), length, count, vocabulary,
        shape.tiles, scratch.sums, scratch.peaks, scratch.plan, num_warps=warps(shape.rows * states),
        ANALYTIC=method == "analytic", DENOISE=denoise, TILES=states, **block,
    )  # fmt: skip
    launch(
        draw_kernel, (programs, shares), x, here, live, mask_id, tuple(strided(key) for key in (seed, row_ids, step)),
        length, count, vocabulary, shape.tiles, each, scratch.peaks, scratch.plan, scratch.best, scratch.winner,
        num_warps=lean, BLOCK=shape.block, **block,
    )  # fmt: skip
    launch(
        write_kernel, (programs,), here, live, mask_id, length, count, shape.tiles, scratch.best, scratch.winner, changed,
        num_warps=warps(shape.rows * states), TILES=states, **block,
    )  # fmt: skip


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    def on(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def steps(
        vocabulary: int, dtype: torch.dtype, mask_id: int, method: str, denoise: bool, eligible: bool
    ) -> Callable[[], object]:
        tokens, delta = on(torch.int64, 4, 1024), on(torch.float64, 4)
        live = on(torch.bool, 4, 1024) if eligible else None
        scores = on(dtype, 4, 1024, vocabulary)
        return lambda: score_entropy_step_(
            tokens, scores, mask_id, delta, method, denoise, live, tokens, tokens, tokens
        )

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield f"V=50258 {name} absorb analytic", steps(50258, dtype, 50257, "analytic", False, False)
        yield f"V=50257 {name} uniform analytic", steps(50257, dtype, -1, "analytic", False, True)
    yield "V=50258 bfloat16 absorb euler", steps(50258, torch.bfloat16, 50257, "euler", False, True)
    yield "V=50258 bfloat16 absorb denoise", steps(50258, torch.bfloat16, 50257, "euler", True, True)
    yield "V=50257 bfloat16 uniform euler", steps(50257, torch.bfloat16, -1, "euler", False, False)
    yield "V=27 float32 uniform analytic", steps(27, torch.float32, -1, "analytic", False, False)
