"""Which committed tokens become masks again. See reference/revoke.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cpu.library import check, library, pack, rows


def revoke_(
    tokens: Tensor,
    confidence: Tensor,
    mask_id: int,
    eligible: Tensor | None,
    threshold: Tensor | None,
    quota: Tensor | None,
    probability: Tensor | None,
    committed: Tensor | None,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    """(remasked int32 [B], revoked bool [B, L])."""
    remasked = torch.empty(tokens.shape[0], dtype=torch.int32)
    revoked = torch.empty(tokens.shape, dtype=torch.bool)
    per_row = [None if p is None else p.contiguous() for p in (threshold, quota, committed)]
    addresses = [0 if p is None else p.data_ptr() for p in per_row]
    fields = [
        *(*tokens.shape, *rows(tokens), *rows(confidence), mask_id, *rows(eligible)),
        *(*addresses[:2], *rows(probability), addresses[2]),
        *(*rows(seed), *rows(row_ids), *rows(step)),
        *(remasked.data_ptr(), revoked.data_ptr()),
    ]
    check(library().dlmk_revoke(pack(fields)))
    return remasked, revoked
