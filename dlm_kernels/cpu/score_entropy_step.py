"""The reverse steps of score-entropy discrete diffusion. See reference/score_entropy_step.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cpu.library import check, library, pack, rows
from dlm_kernels.cpu.score_tokens import DTYPES


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
    """bool [B, L]: positions that changed."""
    changed = torch.empty(tokens.shape, dtype=torch.bool)
    delta_sigma = delta_sigma.contiguous()
    fields = [
        *(log_score.data_ptr(), DTYPES[log_score.dtype], *log_score.shape, log_score.stride(0), log_score.stride(1)),
        *(*rows(tokens), mask_id, delta_sigma.data_ptr(), method == "analytic", denoise),
        *(*rows(eligible), *rows(seed), *rows(row_ids), *rows(step)),
        *(torch.get_num_threads(), changed.data_ptr()),
    ]
    check(library().dlmk_score_entropy_step(pack(fields)))
    return changed
