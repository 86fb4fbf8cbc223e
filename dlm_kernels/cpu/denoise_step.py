"""One denoising step in one call: score, select, commit. See reference/denoise_step.py."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from dlm_kernels.cpu.library import check, library, pack
from dlm_kernels.cpu.score_tokens import scoring_fields
from dlm_kernels.cpu.select_positions import select_fields
from dlm_kernels.results import StepStats, empty_stats

SCORES = {"confidence": 0, "margin": 1, "neg_entropy": 2, "random": 3}


def allocate_step(tokens: Tensor, logits: Tensor) -> tuple[StepStats, tuple[Tensor, ...]]:
    """See the reference. The scratch: token, margin, entropy, logsumexp; what is open, what it is ranked by."""
    shape = tokens.shape
    proposal, live = torch.empty(shape, dtype=torch.int64), torch.empty(shape, dtype=torch.bool)
    margin, entropy, logsumexp, ranked = (torch.empty(shape, dtype=torch.float32) for _ in range(4))
    return empty_stats(tokens), (proposal, margin, entropy, logsumexp, live, ranked)


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
    """See the reference. Makes no tensors, unless `suppress_ids` has gaps."""
    suppress_ids = None if suppress_ids is None else suppress_ids.contiguous()
    proposal, margin, entropy, logsumexp, live, ranked = scratch
    score_fields = scoring_fields(
        logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids, eligible, sampling_confidence, top_p_first
    )
    score_fields += [t.data_ptr() for t in (proposal, confidence, margin, entropy, logsumexp)]
    rule_fields = select_fields(selected, None, None, quota, threshold, factor, entropy_bound, None, at_least, strict)
    status = library().dlmk_denoise_step(
        *(pack(score_fields), pack(rule_fields)),
        *(c_void_p(tokens.data_ptr()), *map(c_int64, tokens.stride()), c_int64(mask_id), c_int64(SCORES[score])),
        *(c_void_p(t.data_ptr()) for t in (live, ranked, committed, remaining)),
    )
    check(status)
