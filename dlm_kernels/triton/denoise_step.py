"""One denoising step in seven launches: what is open, the four of `score_tokens`, the two of `select_positions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.reference import philox as spec
from dlm_kernels.results import StepStats, empty_stats
from dlm_kernels.triton.philox import keyed_uniform
from dlm_kernels.triton.rows import per_row
from dlm_kernels.triton.runtime import launch, strided
from dlm_kernels.triton.score_tokens import Scratch, launch_score_tokens, score_scratch
from dlm_kernels.triton.select_positions import Commit, Ranks, launch_select_positions, rank_scratch

BLOCK = 1024
UNIFORM_STREAM = tl.constexpr(spec.UNIFORM_STREAM)
RANKED_BY = {"confidence": 1, "margin": 2, "neg_entropy": 3}  # which of the scores


@triton.jit(do_not_specialize=["tokens", "eligible", "seed", "row_ids", "step", "mask_id", "length", "count"])
def open_kernel(
    tokens,
    eligible,
    seed,
    row_ids,
    step,
    mask_id,
    length,
    count,
    open_,
    order,
    RANDOM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Which positions may change, and, when RANDOM, the numbers that order them."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    b = i // length
    l = i - b * length  # noqa: E741
    masked = inside & (per_row(tokens, b, l, inside, 0) == mask_id)
    if eligible is not None:
        masked &= per_row(eligible, b, l, inside, 0) != 0
    tl.store(open_ + i, masked, mask=inside)
    if RANDOM:
        u = keyed_uniform(
            per_row(seed, b, l, inside, 0),
            per_row(row_ids, b, l, inside, 0),
            per_row(step, b, l, inside, 0),
            UNIFORM_STREAM,
        )
        tl.store(order + i, u, mask=inside)


def allocate_step(tokens: Tensor, logits: Tensor) -> tuple[StepStats, tuple[Tensor, ...]]:
    """See the reference."""
    shape, device = tokens.shape, tokens.device
    score = score_scratch(tokens.numel(), logits.shape[-1], device)
    rank = rank_scratch((shape[0], shape[1]), device, by_entropy=True)
    open_, token = (torch.empty(shape, dtype=kind, device=device) for kind in (torch.bool, torch.int64))
    order, margin, entropy, logsumexp = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(4))
    return empty_stats(tokens), (
        *(open_, order, token, margin, entropy, logsumexp),
        *(*score.states, *score.summary, *(tensor for tensor in rank if tensor is not None)),
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
    count, length = tokens.numel(), tokens.shape[1]
    open_, order, token, margin, entropy, logsumexp, *rest = scratch
    states, summary, ranks = tuple(rest[:5]), (rest[5], rest[6], rest[7]), Ranks(*rest[8:])
    scores = token, confidence, margin, entropy, logsumexp
    by_chance = score == "random"
    launch(
        open_kernel, (triton.cdiv(count, BLOCK),), strided(tokens), strided(eligible), strided(seed), strided(row_ids),
        strided(step), mask_id, length, count, open_, order, num_warps=4, RANDOM=by_chance, BLOCK=BLOCK,
    )  # fmt: skip
    launch_score_tokens(
        logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids, open_, sampling_confidence, top_p_first,
        scores, Scratch(states, summary),
    )  # fmt: skip
    launch_select_positions(
        order if by_chance else scores[RANKED_BY[score]], open_, quota, threshold, factor, entropy_bound, entropy,
        at_least, strict, selected, ranks, Commit(tokens, token, committed, remaining), negate=score == "neg_entropy",
    )  # fmt: skip


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    def on(kind: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    real, key = on(torch.float32, 4, 32), on(torch.int64, 4, 32)
    logits, flags, count, number = on(torch.bfloat16, 4, 32, 126464), on(torch.bool, 4, 32), key[:, 0], real[:, 0]

    def step(score: str) -> Callable[[], object]:
        return lambda: denoise_step_(
            key, logits, 126336, real, key, real, key, key, key, count[:1], flags, False, False, score,
            count, number, None, number, count, False,
        )  # fmt: skip

    for score in ("confidence", "random"):
        yield score, step(score)
