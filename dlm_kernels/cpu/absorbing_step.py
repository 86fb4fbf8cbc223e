"""The ancestral step of absorbing-state diffusion, with ReMDM's remasking. See reference/absorbing_step.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cpu.library import check, library, pack, rows
from dlm_kernels.cpu.score_tokens import NO_OUTPUTS, scoring_fields


def absorbing_step_(
    tokens: Tensor,
    logits: Tensor,
    mask_id: int,
    alpha_t: Tensor,
    alpha_s: Tensor,
    sigma: Tensor,
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
) -> Tensor:
    """bool [B, L]: positions that changed."""
    changed = torch.empty(tokens.shape, dtype=torch.bool)
    suppress_ids = None if suppress_ids is None else suppress_ids.contiguous()
    alpha_t, alpha_s = alpha_t.contiguous(), alpha_s.contiguous()
    scoring = scoring_fields(
        logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids, eligible, sampling_confidence, top_p_first
    )
    transition = [
        *(*rows(tokens), mask_id, alpha_t.data_ptr(), alpha_s.data_ptr()),
        *(*rows(sigma), changed.data_ptr()),
    ]
    check(library().dlmk_absorbing_step(pack([*scoring, *NO_OUTPUTS]), pack(transition)))
    return changed
