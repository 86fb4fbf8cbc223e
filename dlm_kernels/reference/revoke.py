"""Which committed tokens become masks again."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.reference.keyed_uniform import keyed_uniform
from dlm_kernels.reference.philox import REVOKE_STREAM
from dlm_kernels.reference.select_positions import rank_order


def revoke_(
    tokens: Tensor,  # [B, L] int64, written
    confidence: Tensor,  # [B, L] fp32
    mask_id: int,
    eligible: Tensor | None,  # [B, L] bool
    threshold: Tensor | None,  # [B] fp32
    quota: Tensor | None,  # [B] int64
    probability: Tensor | None,  # [B, L] fp32
    committed: Tensor | None,  # [B] int64
    seed: Tensor,  # this and the next two [B, L]
    row_ids: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    """(remasked int32 [B], revoked bool [B, L]): the union of what the rules choose, cut to fewer than `committed`."""
    candidates = tokens != mask_id
    if eligible is not None:
        candidates &= eligible
    revoked = torch.zeros_like(candidates)
    if threshold is not None:
        revoked |= confidence < threshold[:, None]
    if quota is not None:
        revoked |= rank_from_lowest(confidence, candidates) < quota[:, None]
    if probability is not None:
        revoked |= keyed_uniform(seed, row_ids, step, REVOKE_STREAM) < probability
    revoked &= candidates
    if committed is not None:
        revoked &= rank_from_lowest(confidence, revoked) < committed[:, None] - 1
    tokens.masked_fill_(revoked, mask_id)
    return revoked.sum(-1, dtype=torch.int32), revoked


def rank_from_lowest(confidence: Tensor, eligible: Tensor) -> Tensor:
    """0 for the lowest confidence of the eligible positions, and so on; ties by position, NaN last."""
    return rank_order(-confidence, eligible).argsort(-1)
