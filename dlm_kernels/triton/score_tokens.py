"""Which token each row of logits proposes, and how sure it is. Two launches, neither of which waits for the host:

1. `summarise`: the state of every tile, a row's tiles shared by several programs. Reads the logits. The last program of a row
   (`arrivals.py`) merges the states in a fixed order and writes all five outputs. Where top-k or top-p apply it finds the cut.
2. `draw`: of every tile the best noised entry, and the statistics of the sampled distribution if those are asked for. Reads the
   logits again, except tiles that can neither win nor count. The last program of a row finds the draws' winner and its
   probability. Leaves at once where a row is greedy and has its statistics.

The second reading is there because (x - m) / T must be rounded with the row's true maximum m for tokens to be the same bits on
every backend; of some hundred rows it comes from the L2 cache. The cut comes in the first launch although drawing takes as many
registers as it does: one program finds it while others still read logits, and all that share the drawing would have to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.reference import philox as spec
from dlm_kernels.triton import portable_math
from dlm_kernels.triton.arrivals import last_to_arrive
from dlm_kernels.triton.filters import cut_of_filters
from dlm_kernels.triton.philox import gumbel_noise
from dlm_kernels.triton.portable_math import ordered_key, widen
from dlm_kernels.triton.rows import (
    INFINITY,
    NEGLIGIBLE,
    NOWHERE,
    any_of,
    load_states,
    load_tile,
    merge_states,
    per_row,
    program_rows,
    relative,
    row_pointers,
    store_state,
    tile_state,
)
from dlm_kernels.triton.runtime import HANDS_OVER, Tiling, choose, launch, milliseconds, split, strided, tiling, warps

GUMBEL_STREAM = tl.constexpr(spec.GUMBEL_STREAM)
# A tile cannot win if its maximum plus the largest noise (22.88) stays below the row's maximum with the smallest (-2.82).
HOPELESS = tl.constexpr(-26.0)
WEIGHTLESS = tl.constexpr(-104.0)  # e^this is 0 in fp32

CROWDS = (
    "4",
    "2",
    "8",
    "16",
)  # programs per multiprocessor that share long rows, the default first; no bit depends on it

# Bits of the ordered fp32 key that do not tell values of the dtype apart.
KEY_SHIFT = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}


@triton.jit
def summarise_rows(
    r, b, l, live, logits, temperature, top_k, top_p, suppress_ids, suppressed, count, vocabulary, tiles, each,  # noqa: E741
    states, summary, counters, scores,
    SAMPLING: tl.constexpr, TOP_P_FIRST: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PART: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The first launch for this program's share of the rows r; the last one there merges."""
    last = tl.program_id(1) == 0  # where nothing is live
    if any_of(live):
        row = row_pointers(logits, b, l)
        first = tl.program_id(1) * each
        for tile in range(first, tl.minimum(first + each, tiles)):
            x, v = load_tile(row, live, tile * BLOCK, vocabulary, suppress_ids, suppressed, BLOCK)
            m, i, m2, s, t = tile_state(x, v)
            store_state(states, r, tile, tiles, live, m, i, m2, s, t)
        last = last_to_arrive(counters + tl.program_id(0), 1, tl.num_programs(1))
    if last:
        merge_rows(
            r, b, l, live, logits, temperature, top_k, top_p, suppress_ids, suppressed, count, vocabulary, tiles, states,
            summary, scores, SAMPLING, TOP_P_FIRST, SHIFT, BLOCK, PART, TILES,
        )  # fmt: skip


@triton.jit
def merge_rows(
    r, b, l, live, logits, temperature, top_k, top_p, suppress_ids, suppressed, count, vocabulary, tiles, states,  # noqa: E741
    summary, scores,
    SAMPLING: tl.constexpr, TOP_P_FIRST: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    token, confidence, margin, entropy, logsumexp = scores
    inside = r < count
    m, i, m2, s, t = load_states(states, r, tiles, live, TILES)
    m, i, m2, s, t = merge_states(m, i, m2, s, t)
    s = tl.where(live, s, 1.0)
    nothing = m == -INFINITY
    log_s = portable_math.log(s)
    tl.store(token + r, tl.where(live, i, 0).to(tl.int64), mask=inside)
    tl.store(logsumexp + r, m + log_s, mask=inside)
    value = tl.where(nothing, 0.0, 1.0 / s)
    tl.store(confidence + r, tl.where(m != m, m, value), mask=inside)
    top = tl.where(m != m, INFINITY, m)
    value = tl.where(nothing, 0.0, (1.0 - tl.exp(relative(m2, top))) / s)
    tl.store(margin + r, tl.where(m != m, m, value), mask=inside)
    value = tl.where(nothing, 0.0, log_s - t / s)
    tl.store(entropy + r, tl.where(m != m, m, value), mask=inside)
    tl.store(summary[0] + r, m, mask=inside)
    tl.store(summary[1] + r, s, mask=inside)

    heat = per_row(temperature, b, l, live, 0.0)
    uses_filters = live & (tl.abs(m) < INFINITY)
    if not SAMPLING:
        uses_filters &= heat > 0.0
    cut = cut_of_filters(
        row_pointers(logits, b, l), uses_filters, tl.where(uses_filters, m, 0.0),
        tl.where(heat > 0.0, heat, 1.0), per_row(top_k, b, l, live, 0), per_row(top_p, b, l, live, 1.0),
        vocabulary, suppress_ids, suppressed, tiles, states[0] + r * tiles, TOP_P_FIRST, SHIFT, BLOCK, PART,
    )  # fmt: skip
    tl.store(summary[2] + r, cut, mask=inside)


@triton.jit
def drawing_rows(eligible, temperature, summary, length, count, SAMPLING: tl.constexpr, ROWS: tl.constexpr):
    """`program_rows`, live only where there is something to draw or to sum; and which rows draw, maximum, temperature."""
    r, b, l, live = program_rows(length, count, eligible, ROWS)  # noqa: E741
    heat = per_row(temperature, b, l, live, 0.0)
    m = tl.load(summary[0] + r, mask=live, other=INFINITY)
    live &= tl.abs(m) < INFINITY
    sampled = live & (heat > 0.0)
    if not SAMPLING:
        live = sampled
    return r, b, l, live, sampled, tl.where(live, m, 0.0), tl.where(sampled, heat, 1.0)


@triton.jit
def draw_rows(
    logits, eligible, temperature, seed, row_ids, step, suppress_ids, suppressed, length, count, vocabulary, tiles, each,
    states, summary, counters, scores,
    SAMPLING: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The second launch. Whether this program leaves its rows with all their scores written: one of those that share them does.

    Puts (best noised value, its index) and, when SAMPLING, (m2, s, t) of what is kept in the place of the tiles' states.
    """
    token = scores[0]
    r, b, l, live, sampled, m, heat = drawing_rows(eligible, temperature, summary, length, count, SAMPLING, ROWS)  # noqa: E741
    last = tl.program_id(1) == 0  # where nothing is live
    if any_of(live):
        row = row_pointers(logits, b, l)
        cut = tl.load(summary[2] + r, mask=live, other=0)
        top = tl.load(token + r, mask=live, other=0).to(tl.int32)  # until `finish_rows` the index of the maximum
        keys = per_row(seed, b, l, live, 0)[:, None]
        ids = per_row(row_ids, b, l, live, 0)[:, None]
        steps = per_row(step, b, l, live, 0)[:, None]
        first = tl.program_id(1) * each
        for tile in range(first, tl.minimum(first + each, tiles)):
            peak = tl.load(states[0] + r * tiles + tile, mask=live, other=-INFINITY)
            matters = live & ((peak - m) / heat > (WEIGHTLESS if SAMPLING else HOPELESS))
            best, m2 = tl.full((ROWS,), -INFINITY, tl.float32), tl.full((ROWS,), -INFINITY, tl.float32)
            index = tl.full((ROWS,), NOWHERE, tl.int32)
            s, t = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
            if any_of(matters):
                x, v = load_tile(row, matters, tile * BLOCK, vocabulary, suppress_ids, suppressed, BLOCK)
                scaled = tl.div_rn(x - m[:, None], heat[:, None])
                scaled = tl.where((ordered_key(x) >> SHIFT) >= cut[:, None], scaled, -INFINITY)
                if SAMPLING:
                    y = tl.maximum(scaled, NEGLIGIBLE)
                    e = tl.exp(y)
                    s, t = tl.sum(e, 1), tl.sum(e * y, 1)
                    m2 = tl.max(tl.where(v == top[:, None], -INFINITY, scaled), 1)
                if any_of(sampled):
                    noised = scaled + gumbel_noise(keys, ids, steps, tile * BLOCK, GUMBEL_STREAM, ROWS, BLOCK)
                    best = tl.max(noised, 1)
                    index = tl.min(tl.where(noised == best[:, None], v, NOWHERE), 1)
            store_state(states, r, tile, tiles, live, best, index, m2, s, t)
        last = last_to_arrive(counters + tl.program_id(0), 1, tl.num_programs(1))
        if last:
            finish_rows(
                logits, eligible, temperature, length, count, tiles, states, summary, scores, SAMPLING, ROWS, TILES
            )  # fmt: skip
    return last


@triton.jit
def finish_rows(
    logits, eligible, temperature, length, count, tiles, states, summary, scores,
    SAMPLING: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Looks the rows' numbers up again rather than have registers hold them while they are drawn."""
    r, b, l, live, sampled, m, heat = drawing_rows(eligible, temperature, summary, length, count, SAMPLING, ROWS)  # noqa: E741
    token, confidence, margin, entropy, logsumexp = scores
    best, index, m2, s, t = load_states(states, r, tiles, live, TILES)
    winner = tl.min(tl.where(best == tl.max(best, 1)[:, None], index, NOWHERE), 1).to(tl.int64)
    winner = tl.where(sampled, winner, tl.load(token + r, mask=live, other=0))
    x = widen(tl.load(row_pointers(logits, b, l) + winner, mask=live, other=0.0))
    if SAMPLING:
        total = tl.where(live, tl.sum(s, 1), 1.0)
        log_total = portable_math.log(total)
        scaled = tl.div_rn(x - m, heat)
        second = tl.exp(tl.maximum(tl.max(m2, 1), NEGLIGIBLE))
        tl.store(margin + r, (1.0 - second) / total, mask=live)
        tl.store(entropy + r, log_total - tl.sum(t, 1) / total, mask=live)
        tl.store(logsumexp + r, m / heat + log_total, mask=live)
    else:
        total = tl.load(summary[1] + r, mask=live, other=1.0)
        scaled = x - m
    tl.store(token + r, winner, mask=live)
    tl.store(confidence + r, portable_math.exp(scaled) / total, mask=live)


NUMBERS = ("suppressed", "length", "count", "tiles", "each")  # one compilation for all


@triton.jit(do_not_specialize=["eligible", "temperature", "top_k", "top_p", *NUMBERS])
def summarise_kernel(
    logits, eligible, temperature, top_k, top_p, suppress_ids, suppressed, length, count, vocabulary, tiles, each,
    states, summary, counters, scores,
    SAMPLING: tl.constexpr, TOP_P_FIRST: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PART: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    r, b, l, live = program_rows(length, count, eligible, ROWS)  # noqa: E741
    summarise_rows(
        r, b, l, live, logits, temperature, top_k, top_p, suppress_ids, suppressed, count, vocabulary, tiles, each,
        states, summary, counters, scores, SAMPLING, TOP_P_FIRST, SHIFT, ROWS, BLOCK, PART, TILES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["eligible", "temperature", "seed", "row_ids", "step", *NUMBERS])
def draw_kernel(
    logits, eligible, temperature, seed, row_ids, step, suppress_ids, suppressed, length, count, vocabulary, tiles, each,
    states, summary, counters, scores,
    SAMPLING: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    draw_rows(
        logits, eligible, temperature, seed, row_ids, step, suppress_ids, suppressed, length, count, vocabulary, tiles, each,
        states, summary, counters, scores, SAMPLING, SHIFT, ROWS, BLOCK, TILES,
    )  # fmt: skip


class Scratch(NamedTuple):
    """What programs and launches pass on: states of the tiles (m, m2, s, t, i), and per row (maximum, sum, cut)."""

    states: tuple[Tensor, ...]
    summary: tuple[Tensor, Tensor, Tensor]
    counters: Tensor  # int32, zero between steps, see arrivals.py; one a row, or more


class Extended(NamedTuple):
    """A kernel that does more than the one in whose place it is launched: takes these after the other's arguments."""

    kernel: Any
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012 - never written


SUMMARISE, DRAW = Extended(summarise_kernel), Extended(draw_kernel)
Scores = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def allocate_scores(shape: tuple[int, ...], device: torch.device) -> Scores:
    """(token, confidence, margin, entropy, logsumexp) of `shape`."""
    floats = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(4))
    return torch.empty(shape, dtype=torch.int64, device=device), *floats  # type: ignore[return-value]


def score_scratch(rows: int, vocabulary: int, device: torch.device, more_counters: int = 0) -> Scratch:
    def empty(kind: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=kind, device=device)

    real, whole, tiles = torch.float32, torch.int32, tiling(vocabulary).tiles
    return Scratch(
        (*(empty(real, rows, tiles) for _ in range(4)), empty(whole, rows, tiles)),
        (empty(real, rows), empty(real, rows), empty(whole, rows)),
        torch.zeros(rows + more_counters, dtype=whole, device=device),  # on a GPU torch launches a small kernel for it
    )


def score_tokens(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    suppress_ids: Tensor | None,
    eligible: Tensor | None,
    sampling_confidence: bool,
    top_p_first: bool,
) -> Scores:
    """See the reference."""
    batch, length, vocabulary = logits.shape
    out = allocate_scores((batch, length), logits.device)
    scratch = score_scratch(batch * length, vocabulary, logits.device)
    launch_score_tokens(
        logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids, eligible, sampling_confidence, top_p_first,
        out, scratch,
    )  # fmt: skip
    return out


def launch_score_tokens(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    suppress_ids: Tensor | None,
    eligible: Tensor | None,
    sampling_confidence: bool,
    top_p_first: bool,
    out: tuple[Tensor, ...],  # contiguous
    scratch: Scratch,
    crowd: int | None = None,  # programs per multiprocessor
    first: Extended = SUMMARISE,
    second: Extended = DRAW,
) -> None:
    """`eligible` may be memory that `first` fills."""
    batch, length, vocabulary = logits.shape
    count = batch * length
    shape = tiling(vocabulary)
    programs = triton.cdiv(count, shape.rows)
    if crowd is None:
        known = eligible if first is SUMMARISE else None
        scoring = (
            temperature, top_k, top_p, seed, row_ids, step, suppress_ids, known, sampling_confidence, top_p_first,
        )  # fmt: skip

        def measure(crowd: str) -> float:  # of the scores alone, as they can be computed again and again
            return milliseconds(lambda: launch_score_tokens(logits, *scoring, out, scratch, int(crowd)))

        crowd = int(choose("score_tokens", vocabulary, logits.dtype, count, logits.device, CROWDS, measure))
    shares, each = split(programs, shape.tiles, crowd, logits.device) if HANDS_OVER else (1, shape.tiles)
    x, live, heat = strided(logits), strided(eligible), strided(temperature)
    ids = None if suppress_ids is None else suppress_ids.contiguous()
    suppressed = 0 if ids is None else ids.numel()
    work = ids, suppressed, length, count, vocabulary, shape.tiles, each, *scratch, tuple(out)
    options = {
        "SAMPLING": sampling_confidence, "SHIFT": KEY_SHIFT[logits.dtype], "ROWS": shape.rows, "BLOCK": shape.block,
        "TILES": triton.next_power_of_2(shape.tiles),
    }  # fmt: skip
    launch(
        first.kernel, (programs, shares), x, live, heat, strided(top_k), strided(top_p), *work, *first.arguments,
        num_warps=shape.warps, TOP_P_FIRST=top_p_first, PART=min(shape.block, 8 * 32 * shape.warps), **options,
        **first.options,
    )  # fmt: skip
    launch(
        second.kernel, (programs, shares), x, live, heat, strided(seed), strided(row_ids), strided(step), *work,
        *second.arguments, num_warps=draw_warps(shape), **options, **second.options,
    )  # fmt: skip


def draw_warps(shape: Tiling) -> int:
    return warps(shape.rows * shape.block, per_thread=8)  # the noise and the weights take registers


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    def scores(
        vocabulary: int, dtype: torch.dtype, sampling: bool, first: bool, restricted: bool
    ) -> Callable[[], object]:
        def on(kind: torch.dtype, *shape: int) -> Tensor:
            return torch.empty(shape, dtype=kind, device="meta")

        rows, key = (4, 32), on(torch.int64, 4, 32)
        real, flags = on(torch.float32, *rows), on(torch.bool, *rows)
        ids = on(torch.int64, 1) if restricted else None
        logits = on(dtype, *rows, vocabulary)
        live = flags if restricted else None
        return lambda: score_tokens(logits, real, key, real, key, key, key, ids, live, sampling, first)

    for dtype in KEY_SHIFT:
        name = str(dtype).removeprefix("torch.")
        yield f"V=126464 {name}", scores(126464, dtype, False, False, True)
        yield f"V=151936 {name} sampling", scores(151936, dtype, True, True, True)
    yield "V=126464 bfloat16 plain", scores(126464, torch.bfloat16, False, False, False)
    yield "V=61 float32", scores(61, torch.float32, True, False, True)
    yield "V=50257 float32", scores(50257, torch.float32, False, False, False)
    yield "V=1000 bfloat16", scores(1000, torch.bfloat16, True, False, True)
