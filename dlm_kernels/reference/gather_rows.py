"""Reads rows of a cache at positions of each batch row's own."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_rows(source: Tensor, positions: Tensor) -> Tensor:
    """[B, M, ...] of source [B, N, ...] at positions [B, M]; zeros where a position is not in [0, N)."""
    batch, count = source.shape[:2]
    inside = (positions >= 0) & (positions < count)
    if not count:
        return source.new_zeros((*positions.shape, *source.shape[2:]))
    rows = source[torch.arange(batch, device=source.device)[:, None], positions.clamp(0, count - 1)]
    outside = ~inside.view(*positions.shape, *(1 for _ in source.shape[2:]))
    return rows.masked_fill(outside, 0).contiguous()
