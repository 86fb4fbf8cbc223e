"""One denoising step: score, select, commit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm_kernels.reference.commit import commit_
from dlm_kernels.reference.keyed_uniform import keyed_uniform
from dlm_kernels.reference.philox import UNIFORM_STREAM
from dlm_kernels.reference.score_tokens import score_tokens
from dlm_kernels.reference.select_positions import select_positions
from dlm_kernels.results import StepStats, empty_stats


def denoise_step_(
    tokens: Tensor,  # [B, L] int64, written
    logits: Tensor,  # [B, L, V]
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(committed int32 [B], remaining int32 [B], confidence fp32 [B, L], selected bool [B, L])."""
    masked = tokens == mask_id
    eligible = masked if eligible is None else eligible & masked
    token, confidence, margin, entropy, _ = score_tokens(
        logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids, eligible, sampling_confidence, top_p_first
    )
    if score == "random":
        ranked = keyed_uniform(seed, row_ids, step, UNIFORM_STREAM)
    else:
        ranked = {"confidence": confidence, "margin": margin, "neg_entropy": -entropy}[score]
    selected = select_positions(ranked, eligible, quota, threshold, factor, entropy_bound, entropy, at_least, strict)
    commit_(tokens, token, selected)
    committed = selected.sum(-1, dtype=torch.int32)
    return committed, eligible.sum(-1, dtype=torch.int32) - committed, confidence, selected


def allocate_step(tokens: Tensor, logits: Tensor) -> tuple[StepStats, tuple[Tensor, ...]]:
    """The outputs and the scratch of `denoise_step_out_`, which fit these shapes with any other arguments."""
    return empty_stats(tokens), ()


def denoise_step_out_(*arguments: Any) -> None:
    """What a backend does with memory of the caller's: fills the outputs, and uses the scratch, which here is nothing.

    Arguments: those of `denoise_step_`; committed, remaining, confidence, selected; scratch.
    """
    *step, committed, remaining, confidence, selected, _scratch = arguments
    for out, value in zip((committed, remaining, confidence, selected), denoise_step_(*step), strict=True):
        out.copy_(value)
