"""One denoising step in two launches: score the open positions; merge, select, commit. See reference/denoise_step.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlm_kernels.cuda import module
from dlm_kernels.cuda.arguments import SELECT_THREADS, key_scratch, threads_for
from dlm_kernels.cuda.module import Kernel
from dlm_kernels.cuda.score_tokens import allocate_parts, launch_parts
from dlm_kernels.cuda.select_positions import rule_fields
from dlm_kernels.results import StepStats, empty_stats

FINISH = Kernel("denoise_step", "dlmk_finish_step", SELECT_THREADS)
SCORES = {"confidence": 0, "margin": 1, "neg_entropy": 2, "random": 3}


class Scratch(NamedTuple):
    """Memory of a step that nobody reads afterwards."""

    parts: Tensor
    proposal: Tensor  # int64 [B, L]
    ranked: Tensor  # fp32 [B, L]
    entropy: Tensor  # fp32 [B, L]
    live: Tensor  # bool [B, L]
    keys: Tensor | None = None  # last, as short rows need none


def allocate_step(tokens: Tensor, logits: Tensor) -> tuple[StepStats, tuple[Tensor, ...]]:
    """See the reference."""
    shape, device = tokens.shape, tokens.device
    scratch = Scratch(
        allocate_parts(logits),
        torch.empty(shape, dtype=torch.int64, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.bool, device=device),
        key_scratch(logits),
    )
    return empty_stats(tokens), tuple(tensor for tensor in scratch if tensor is not None)


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
    batch, length = tokens.shape
    if batch == 0:
        return
    if length == 0:
        committed.zero_()
        remaining.zero_()
        return
    memory = Scratch(*scratch)
    fields = launch_parts(
        *(memory.parts, logits, temperature, top_k, top_p, seed, row_ids, step),
        *(suppress_ids, eligible, sampling_confidence, top_p_first, tokens, mask_id),
    )
    fields += rule_fields(quota, threshold, factor, entropy_bound, at_least, strict, memory.keys)
    between = (memory.proposal, memory.ranked, memory.entropy, memory.live)
    written = (*between, committed, remaining, confidence, selected)
    fields += [SCORES[score], *(tensor.data_ptr() for tensor in written)]
    module.launch(FINISH, batch, threads_for(length, SELECT_THREADS), fields, tokens.device)
