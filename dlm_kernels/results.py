"""What the ops return."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TokenScores(NamedTuple):
    """Statistics of rows of logits; every field has the rows' shape [...]."""

    token: Tensor  # int64
    confidence: Tensor  # fp32, probability of `token`
    margin: Tensor  # fp32, highest minus second highest probability
    entropy: Tensor  # fp32, nats
    logsumexp: Tensor  # fp32


class StepStats(NamedTuple):
    """What one denoising step did."""

    committed: Tensor  # int32 [B], positions written
    remaining: Tensor  # int32 [B], eligible positions left
    confidence: Tensor  # fp32 [B, L], 0 where not eligible
    selected: Tensor  # bool [B, L]


class StepBuffers(NamedTuple):
    """Memory of a denoising step, by `step_buffers`."""

    stats: StepStats
    scratch: tuple[Tensor, ...]  # the backend's, of no use afterwards
    backend: str  # it and the shape are what the buffers fit
    shape: tuple[int, ...]  # of the logits, [B, L, V]
    layout: tuple[tuple[torch.dtype, tuple[int, ...]], ...]  # dtypes and shapes that stats and scratch were made with


class RevokeStats(NamedTuple):
    """What was remasked."""

    remasked: Tensor  # int32 [B]
    revoked: Tensor  # bool [B, L]


class NearestRows(NamedTuple):
    """Rows of a table nearest to vectors [..., D]."""

    ids: Tensor  # int64 [...]
    distance: Tensor  # fp32 [...], Euclidean


class TopK(NamedTuple):
    """The likeliest tokens of rows of logits, and how far the rows moved."""

    kl: Tensor  # fp32 [...], nats; inf if there was nothing before
    ids: Tensor  # int64 [..., k]
    log_probs: Tensor  # fp32 [..., k + 1], the last one that of all other tokens together


def empty_stats(tokens: Tensor) -> StepStats:
    """Memory for the statistics of a step on these tokens."""
    rows, shape, device = tokens.shape[:1], tokens.shape, tokens.device
    return StepStats(
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.bool, device=device),
    )
