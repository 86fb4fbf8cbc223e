"""The posterior step of uniform-state diffusion.

1. Who may move: more agreement between x_0 and x_t only makes staying likelier, so what stays without any stays, unread.
2. A token for each of these (`score_tokens`).
3. Leave-one-out denoisers: the total of the sampling distribution in fp64, for p(x_t), tile by tile.
4. The routes, and the writing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.triton.portable_math import ordered_key, widen
from dlm_kernels.triton.rows import INFINITY, NAN, any_of, load_tile, per_row, program_rows, row_pointers
from dlm_kernels.triton.runtime import CROWD, launch, split, strided, tiling, warps
from dlm_kernels.triton.score_tokens import (
    KEY_SHIFT,
    Scores,
    Scratch,
    allocate_scores,
    launch_score_tokens,
    score_scratch,
)
from dlm_kernels.triton.transitions import BLOCK, keyed_integer, levels_of, program_positions, route_uniform


@triton.jit
def routes(u, alphas, b, live, vocabulary, agreement):
    """(noise, clean): what each position takes; with neither it stays. The rare routes first, where u is finest."""
    alpha_t, alpha_s = levels_of(alphas, b, live)
    signal = alpha_s > 0.0
    ratio = tl.where(signal, alpha_t / tl.where(signal, alpha_s, 1.0), 1.0)  # no signal at either time: no change
    noise = (1.0 - ratio) * (1.0 - alpha_s)
    at = u * (alpha_t * vocabulary.to(tl.float64) * agreement + 1.0 - alpha_t)
    return at < noise, (at >= noise) & (at < noise + (alpha_s - alpha_t))


@triton.jit(do_not_specialize=["length", "count"])
def uniform_route_kernel(moves, eligible, alphas, keys, length, count, vocabulary, BLOCK: tl.constexpr):
    r, b, l, live = program_positions(length, count, BLOCK)  # noqa: E741
    noise, clean = routes(route_uniform(keys, b, l, live), alphas, b, live, vocabulary, 0.0)
    may_move = live & (noise | clean)
    if eligible is not None:
        may_move &= per_row(eligible, b, l, live, 0) != 0
    tl.store(moves + r, may_move, mask=live)


@triton.jit
def scaled_of(x, m, heat):
    """(x - m) / T in fp64."""
    return (x.to(tl.float64) - m.to(tl.float64)) / heat.to(tl.float64)


@triton.jit(do_not_specialize=["moves", "temperature", "suppressed", "length", "count", "tiles", "each"])
def total_kernel(
    logits, moves, temperature, suppress_ids, suppressed, length, count, vocabulary, tiles, each, summary, totals,
    SHIFT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum of e^((x - m) / T) over what the filters keep of each tile, fp64 [rows, tiles]."""
    r, b, l, live = program_rows(length, count, moves, ROWS)  # noqa: E741
    heat = per_row(temperature, b, l, live, 0.0)
    m = tl.load(summary[0] + r, mask=live, other=INFINITY)
    live &= (tl.abs(m) < INFINITY) & (heat > 0.0)
    if any_of(live):
        row = row_pointers(logits, b, l)
        m, heat = tl.where(live, m, 0.0), tl.where(live, heat, 1.0)
        cut = tl.load(summary[2] + r, mask=live, other=0)
        first = tl.program_id(1) * each
        for tile in range(first, tl.minimum(first + each, tiles)):
            x, _ = load_tile(row, live, tile * BLOCK, vocabulary, suppress_ids, suppressed, BLOCK)
            e = tl.exp(scaled_of(x, m[:, None], heat[:, None]))
            e = tl.where((ordered_key(x) >> SHIFT) >= cut[:, None], e, 0.0)
            tl.store(totals + r * tiles + tile, tl.sum(e, 1), mask=live)


@triton.jit(do_not_specialize=["moves", "temperature", "suppressed", "length", "count", "tiles"])
def uniform_write_kernel(
    tokens, logits, alphas, keys, temperature, suppress_ids, suppressed, moves, length, count, vocabulary, tiles,
    summary, totals, token, changed, LEAVE_ONE_OUT: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    r, b, l, live = program_rows(length, count, moves, ROWS)  # noqa: E741
    inside = r < count
    here = per_row(tokens, b, l, live, 0)
    clean_token = tl.load(token + r, mask=live, other=0)
    agreement = (clean_token == here).to(tl.float64)
    if LEAVE_ONE_OUT:
        heat = per_row(temperature, b, l, live, 0.0)
        m = tl.load(summary[0] + r, mask=live, other=0.0)
        cut = tl.load(summary[2] + r, mask=live, other=0)
        sampled = live & (heat > 0.0)
        ordinary = sampled & (tl.abs(m) < INFINITY)
        known = ordinary & (here >= 0) & (here < vocabulary)
        x = widen(tl.load(row_pointers(logits, b, l) + here, mask=known, other=-INFINITY))
        if suppress_ids is not None:
            for j in range(suppressed):
                x = tl.where(here == tl.load(suppress_ids + j), -INFINITY, x)
        tile = tl.arange(0, TILES)[None, :]
        there = ordinary[:, None] & (tile < tiles)
        total = tl.sum(tl.load(totals + r[:, None] * tiles + tile, mask=there, other=0.0), 1)
        weight = tl.exp(scaled_of(x, tl.where(ordinary, m, 0.0), tl.where(ordinary, heat, 1.0)))
        p = tl.where((ordered_key(x) >> SHIFT) >= cut, weight / tl.where(ordinary, total, 1.0), 0.0)
        agreement = tl.where(sampled, tl.where(ordinary, p, NAN), agreement)
    noise, clean = routes(route_uniform(keys, b, l, live), alphas, b, live, vocabulary, agreement)
    state = keyed_integer(keys, b, l, live, vocabulary)
    after = tl.where(live & noise, state, tl.where(live & clean, clean_token, here))
    tl.store(changed + r, after != here, mask=inside)
    tl.store(tokens[0] + b * tokens[1] + l * tokens[2], after, mask=live)


class UniformScratch(NamedTuple):
    """What the launches pass on, all contiguous."""

    moves: Tensor  # bool [B, L]
    totals: Tensor  # fp64 [B L, tiles]; empty for "posterior" denoisers
    scores: Scores
    score_scratch: Scratch


def uniform_scratch(tokens: Tensor, vocabulary: int, leave_one_out: bool) -> UniformScratch:
    tiles, device = tiling(vocabulary).tiles, tokens.device
    return UniformScratch(
        torch.empty(tokens.shape, dtype=torch.bool, device=device),
        torch.empty((tokens.numel() if leave_one_out else 0, tiles), dtype=torch.float64, device=device),
        allocate_scores(tokens.shape, device),
        score_scratch(tokens.numel(), vocabulary, device),
    )


def uniform_step_(
    tokens: Tensor, logits: Tensor, alpha_t: Tensor, alpha_s: Tensor, leave_one_out: bool, *scoring: Any
) -> Tensor:
    """See the reference; `scoring` is what `score_tokens` takes after the logits."""
    changed = torch.empty(tokens.shape, dtype=torch.bool, device=tokens.device)
    scratch = uniform_scratch(tokens, logits.shape[-1], leave_one_out)
    launch_uniform_step_(tokens, logits, alpha_t, alpha_s, leave_one_out, scoring, changed, scratch)
    return changed


def launch_uniform_step_(
    tokens: Tensor,
    logits: Tensor,
    alpha_t: Tensor,
    alpha_s: Tensor,
    leave_one_out: bool,
    scoring: tuple[Any, ...],
    changed: Tensor,  # contiguous
    scratch: UniformScratch,
) -> None:
    *filters, seed, row_ids, step, suppress_ids, eligible, sampling_confidence, top_p_first = scoring
    temperature, top_k, top_p = filters
    length, count, vocabulary = tokens.shape[1], tokens.numel(), logits.shape[-1]
    alphas = tuple((alpha, alpha.stride(0)) for alpha in (alpha_t, alpha_s))
    keys = tuple(strided(key) for key in (seed, row_ids, step))
    launch(
        uniform_route_kernel, (triton.cdiv(count, BLOCK),), scratch.moves, strided(eligible), alphas, keys,
        length, count, vocabulary, num_warps=4, BLOCK=BLOCK,
    )  # fmt: skip
    launch_score_tokens(
        logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids, scratch.moves, sampling_confidence,
        top_p_first, scratch.scores, scratch.score_scratch,
    )  # fmt: skip
    shape = tiling(vocabulary)
    programs = triton.cdiv(count, shape.rows)
    shares, each = split(programs, shape.tiles, CROWD, tokens.device)
    x, live, heat = strided(logits), strided(scratch.moves), strided(temperature)
    summary = scratch.score_scratch.summary
    ids = None if suppress_ids is None else suppress_ids.contiguous()
    suppressed = 0 if ids is None else ids.numel()
    if leave_one_out:
        launch(
            total_kernel, (programs, shares), x, live, heat, ids, suppressed, length, count, vocabulary, shape.tiles,
            each, summary, scratch.totals,
            num_warps=min(8, warps(shape.rows * shape.block, per_thread=8)), SHIFT=KEY_SHIFT[logits.dtype],
            ROWS=shape.rows, BLOCK=shape.block,
        )  # fmt: skip
    states = triton.next_power_of_2(shape.tiles)
    launch(
        uniform_write_kernel, (programs,), strided(tokens), x, alphas, keys, heat, ids, suppressed, live, length, count,
        vocabulary, shape.tiles, summary, scratch.totals, scratch.scores[0], changed,
        num_warps=warps(shape.rows * states), LEAVE_ONE_OUT=leave_one_out, SHIFT=KEY_SHIFT[logits.dtype],
        ROWS=shape.rows, TILES=states,
    )  # fmt: skip


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    def on(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def steps(vocabulary: int, dtype: torch.dtype, leave_one_out: bool, restricted: bool) -> Callable[[], object]:
        rows = (4, 1024)
        tokens, level, real = on(torch.int64, *rows), on(torch.float64, 4), on(torch.float32, *rows)
        live, ids = (on(torch.bool, *rows), on(torch.int64, 1)) if restricted else (None, None)
        scoring = (real, tokens, real, tokens, tokens, tokens, ids, live, False, False)
        logits = on(dtype, *rows, vocabulary)
        return lambda: uniform_step_(tokens, logits, level, level, leave_one_out, *scoring)

    for dtype in KEY_SHIFT:
        yield f"V=50257 {str(dtype).removeprefix('torch.')} leave one out", steps(50257, dtype, True, True)
    yield "V=50257 bfloat16 posterior", steps(50257, torch.bfloat16, False, False)
    yield "V=28 float32 leave one out", steps(28, torch.float32, True, False)
