"""The ancestral step of absorbing-state diffusion: who jumps; tokens for the masks among them (`score_tokens`); the writing.

Only the logits of masks that jump are read, twice at most. Nothing is written before all kernels have compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.triton.rows import per_row
from dlm_kernels.triton.runtime import launch, strided
from dlm_kernels.triton.score_tokens import Scores, Scratch, allocate_scores, launch_score_tokens, score_scratch
from dlm_kernels.triton.transitions import BLOCK, levels_of, program_positions, route_uniform


@triton.jit(do_not_specialize=["length", "count", "mask_id"])
def absorbing_route_kernel(
    tokens, eligible, mask_id, alphas, sigma, keys, jumps, filled, length, count, BLOCK: tl.constexpr
):
    r, b, l, live = program_positions(length, count, BLOCK)  # noqa: E741
    masked = per_row(tokens, b, l, live, 0) == mask_id
    alpha_t, alpha_s = levels_of(alphas, b, live)
    remasks = per_row(sigma, b, l, live, 0.0)
    # P(x_s is a token | x_t = mask). Nothing is masked at alpha_t = 1; a mask found there all the same is filled.
    noisy = alpha_t < 1.0
    unmasks = (alpha_s - (1.0 - remasks) * alpha_t) / tl.where(noisy, 1.0 - alpha_t, 1.0)
    probability = tl.where(masked, tl.where(noisy, unmasks, 1.0), remasks)
    chosen = live & (route_uniform(keys, b, l, live) < probability)
    if eligible is not None:
        chosen &= per_row(eligible, b, l, live, 0) != 0
    tl.store(jumps + r, chosen, mask=live)
    tl.store(filled + r, chosen & masked, mask=live)


@triton.jit(do_not_specialize=["length", "count", "mask_id"])
def absorbing_write_kernel(tokens, mask_id, token, jumps, filled, length, count, BLOCK: tl.constexpr):
    r, b, l, live = program_positions(length, count, BLOCK)  # noqa: E741
    moves = tl.load(jumps + r, mask=live, other=0) != 0
    fills = tl.load(filled + r, mask=live, other=0) != 0
    after = tl.where(fills, tl.load(token + r, mask=fills, other=0), mask_id)
    tl.store(tokens[0] + b * tokens[1] + l * tokens[2], after, mask=moves)


def absorbing_step_(
    tokens: Tensor, logits: Tensor, mask_id: int, alpha_t: Tensor, alpha_s: Tensor, sigma: Tensor, *scoring: Any
) -> Tensor:
    """See the reference; `scoring` is what `score_tokens` takes after the logits."""
    jumps = torch.empty(tokens.shape, dtype=torch.bool, device=tokens.device)
    launch_absorbing_step_(
        tokens, logits, mask_id, alpha_t, alpha_s, sigma, scoring, jumps, torch.empty_like(jumps),
        allocate_scores(tokens.shape, tokens.device), score_scratch(tokens.numel(), logits.shape[-1], tokens.device),
    )  # fmt: skip
    return jumps


def launch_absorbing_step_(
    tokens: Tensor,
    logits: Tensor,
    mask_id: int,
    alpha_t: Tensor,
    alpha_s: Tensor,
    sigma: Tensor,
    scoring: tuple[Any, ...],
    jumps: Tensor,  # this and the next contiguous
    filled: Tensor,
    scores: Scores,
    scratch: Scratch,
) -> None:
    *filters, seed, row_ids, step, suppress_ids, eligible, sampling_confidence, top_p_first = scoring
    temperature, top_k, top_p = filters
    length, count = tokens.shape[1], tokens.numel()
    grid = (triton.cdiv(count, BLOCK),)
    alphas = tuple((alpha, alpha.stride(0)) for alpha in (alpha_t, alpha_s))
    keys = tuple(strided(key) for key in (seed, row_ids, step))
    launch(
        absorbing_route_kernel, grid, strided(tokens), strided(eligible), mask_id, alphas, strided(sigma), keys,
        jumps, filled, length, count, num_warps=4, BLOCK=BLOCK,
    )  # fmt: skip
    launch_score_tokens(
        logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids, filled, sampling_confidence, top_p_first,
        scores, scratch,
    )  # fmt: skip
    launch(
        absorbing_write_kernel, grid, strided(tokens), mask_id, scores[0], jumps, filled, length, count,
        num_warps=4, BLOCK=BLOCK,
    )  # fmt: skip


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    def on(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows = (4, 1024)
    tokens, level, sigma = on(torch.int64, *rows), on(torch.float64, 4), on(torch.float64, *rows)
    logits, real = on(torch.bfloat16, *rows, 50258), on(torch.float32, *rows)
    for name, eligible in (("", None), (", eligible", on(torch.bool, *rows))):
        scoring = (real, tokens, real, tokens, tokens, tokens, tokens[0, :1], eligible, False, False)
        yield (
            f"V=50258 bfloat16{name}",
            partial(absorbing_step_, tokens, logits, 50257, level, level, sigma, *scoring),
        )
