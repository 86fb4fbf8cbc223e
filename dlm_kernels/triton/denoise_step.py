"""One denoising step in two launches: the two of `score_tokens`, and in each what can be done as soon as a row is through.

1. `open_and_summarise`: which positions may change, and, where chance orders them, the numbers that do; their statistics.
2. `draw_and_commit`: their tokens; the last program of a batch row (`arrivals.py`) selects among its positions and commits.

One program selects for a batch row of up to 1024 positions (where a vocabulary has at most 512 or 256 tokens and a program few
warps for that: 512, 256; `select_positions.sorted_block`). For longer rows the launches of `select_positions` follow instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.reference import philox as spec
from dlm_kernels.results import StepStats, empty_stats
from dlm_kernels.triton.arrivals import last_to_arrive
from dlm_kernels.triton.philox import keyed_uniform
from dlm_kernels.triton.rows import per_row, program_rows
from dlm_kernels.triton.runtime import HANDS_OVER, strided, tiling
from dlm_kernels.triton.score_tokens import (
    DRAW,
    NUMBERS,
    Extended,
    Scratch,
    draw_rows,
    draw_warps,
    launch_score_tokens,
    score_scratch,
    summarise_rows,
)
from dlm_kernels.triton.select_positions import (
    MOST_REGISTERS,
    Commit,
    Ranks,
    choose_arguments,
    choose_row,
    launch_select_positions,
    rank_scratch,
    sorted_block,
)

UNIFORM_STREAM = tl.constexpr(spec.UNIFORM_STREAM)
RANKED_BY = {"confidence": 1, "margin": 2, "neg_entropy": 3}  # which of the scores


@triton.jit(
    do_not_specialize=[
        *("open_", "temperature", "top_k", "top_p", *NUMBERS),
        *("tokens", "mask_id", "eligible", "seed", "row_ids", "step"),
    ]
)
def open_and_summarise_kernel(
    logits, open_, temperature, top_k, top_p, suppress_ids, suppressed, length, count, vocabulary, tiles, each,
    states, summary, counters, scores, tokens, mask_id, eligible, seed, row_ids, step, order,
    SAMPLING: tl.constexpr, TOP_P_FIRST: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PART: tl.constexpr, TILES: tl.constexpr, RANDOM: tl.constexpr,
):  # fmt: skip
    r, b, l, live = program_rows(length, count, eligible, ROWS)  # noqa: E741
    inside = r < count
    live &= per_row(tokens, b, l, live, 0) == mask_id
    if tl.program_id(1) == 0:
        tl.store(open_[0] + r, live, mask=inside)
        if RANDOM:
            u = keyed_uniform(
                per_row(seed, b, l, inside, 0), per_row(row_ids, b, l, inside, 0), per_row(step, b, l, inside, 0),
                UNIFORM_STREAM,
            )  # fmt: skip
            tl.store(order + r, u, mask=inside)
    summarise_rows(
        r, b, l, live, logits, temperature, top_k, top_p, suppress_ids, suppressed, count, vocabulary, tiles, each,
        states, summary, counters, scores, SAMPLING, TOP_P_FIRST, SHIFT, ROWS, BLOCK, PART, TILES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["open_", "temperature", "seed", "row_ids", "step", *NUMBERS, "selection"])
def draw_and_commit_kernel(
    logits, open_, temperature, seed, row_ids, step, suppress_ids, suppressed, length, count, vocabulary, tiles, each,
    states, summary, counters, scores, selection,
    SAMPLING: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
    NEGATE: tl.constexpr, STRICT: tl.constexpr, SORTED: tl.constexpr,
):  # fmt: skip
    through = draw_rows(
        logits, open_, temperature, seed, row_ids, step, suppress_ids, suppressed, length, count, vocabulary, tiles, each,
        states, summary, counters, scores, SAMPLING, SHIFT, ROWS, BLOCK, TILES,
    )  # fmt: skip
    if through:  # rows where nothing was to be done too: a batch row waits for all of its positions
        first = tl.program_id(0) * ROWS
        end = tl.minimum(first + ROWS, count)
        for b in range(first // length, (end - 1) // length + 1):
            arriving = tl.minimum(end, (b + 1) * length) - tl.maximum(first, b * length)
            if last_to_arrive(counters + count + b, arriving, length):
                choose_row(
                    tl.cast(b, tl.int64), *selection, NEGATE=NEGATE, STRICT=STRICT, BLOCK=SORTED, SORTED=SORTED
                )  # fmt: skip


def allocate_step(tokens: Tensor, logits: Tensor) -> tuple[StepStats, tuple[Tensor, ...]]:
    """See the reference."""
    shape, device = tokens.shape, tokens.device
    score = score_scratch(tokens.numel(), logits.shape[-1], device, more_counters=shape[0])
    rank = rank_scratch((shape[0], shape[1]), device, by_entropy=True)
    open_, token = (torch.empty(shape, dtype=kind, device=device) for kind in (torch.bool, torch.int64))
    order, margin, entropy, logsumexp = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(4))
    return empty_stats(tokens), (
        *(open_, order, token, margin, entropy, logsumexp),
        *(*score.states, *score.summary, *(tensor for tensor in rank if tensor is not None), score.counters),
    )


def denoise_step_(tokens: Tensor, logits: Tensor, *options: Any) -> StepStats:
    """See the reference."""
    stats, scratch = allocate_step(tokens, logits)
    arguments: tuple[Any, ...] = (tokens, logits, *options, *stats, scratch)
    denoise_step_out_(*arguments)
    return stats


def denoise_step_out_(
    tokens: Tensor,
    logits: Tensor,
    mask_id: int,
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
    score: str,
    quota: Tensor | None,
    threshold: Tensor | None,
    factor: Tensor | None,
    entropy_bound: Tensor | None,
    at_least: Tensor,
    strict: bool,
    committed: Tensor,
    remaining: Tensor,
    confidence: Tensor,
    selected: Tensor,
    scratch: Sequence[Tensor],
) -> None:
    """See the reference."""
    length = tokens.shape[1]
    if length == 0:  # no program to count nothing
        committed.zero_()
        remaining.zero_()
        return
    open_, order, token, margin, entropy, logsumexp, *rest, counters = scratch
    scores = token, confidence, margin, entropy, logsumexp
    between, ranks = Scratch(tuple(rest[:5]), (rest[5], rest[6], rest[7]), counters), Ranks(*rest[8:])
    by_chance, negate = score == "random", score == "neg_entropy"
    ranked = order if by_chance else scores[RANKED_BY[score]]
    commit = Commit(tokens, token, committed, remaining)
    rules = quota, threshold, factor, entropy_bound, entropy, at_least
    first = Extended(
        open_and_summarise_kernel,
        (strided(tokens), mask_id, strided(eligible), strided(seed), strided(row_ids), strided(step), order),
        {"RANDOM": by_chance},
    )
    second, rows = DRAW, sorted_block(length, draw_warps(tiling(logits.shape[-1])))
    at_once = HANDS_OVER and rows > 0
    if at_once:
        selection = choose_arguments(ranked, open_, *rules, selected, ranks, commit)
        options = {"NEGATE": negate, "STRICT": strict, "SORTED": rows, "maxnreg": MOST_REGISTERS}
        second = Extended(draw_and_commit_kernel, (selection,), options)
    launch_score_tokens(
        logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids, open_, sampling_confidence, top_p_first,
        scores, between, first=first, second=second,
    )  # fmt: skip
    if not at_once:
        launch_select_positions(ranked, open_, *rules, strict, selected, ranks, commit, negate)


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    def on(kind: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    def step(
        vocabulary: int, dtype: torch.dtype, length: int, score: str, sampling: bool = False, bounded: bool = True
    ) -> Callable[[], object]:
        real, key, flags = (on(kind, 4, length) for kind in (torch.float32, torch.int64, torch.bool))
        logits, count, number = on(dtype, 4, length, vocabulary), key[:, 0], real[:, 0]
        return lambda: denoise_step_(
            key, logits, vocabulary - 1, real, key, real, key, key, key, count[:1], flags, sampling, False, score,
            count, number, number if sampling else None, number if bounded else None, count, False,
        )  # fmt: skip

    yield "confidence", step(126464, torch.bfloat16, 32, "confidence")
    yield "random", step(126464, torch.bfloat16, 32, "random", bounded=False)
    yield "L=1024", step(126464, torch.bfloat16, 1024, "margin")
    yield "V=151936 float32 L=1024 sampling", step(151936, torch.float32, 1024, "neg_entropy", sampling=True)
    yield "V=1000 float16 L=512 sampling", step(1000, torch.float16, 512, "confidence", sampling=True)
    yield "V=61 float32 L=256", step(61, torch.float32, 256, "confidence")
