"""Writes rows of a cache at positions of each batch row's own."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.reference.gather_rows import gather_rows


def scatter_rows_(target: Tensor, positions: Tensor, rows: Tensor) -> None:
    """target[b, positions[b, m]] = rows[b, m] in the order of m; positions that are not in [0, N) write nothing."""
    batch, count = target.shape[:2]
    slots = positions.shape[1]
    m = torch.arange(slots, device=target.device).expand(batch, slots)
    inside = (positions >= 0) & (positions < count)
    # Which m writes each position: the last one that names it, -1 for none. Column N takes what is outside.
    writer = torch.full((batch, count + 1), -1, device=target.device)
    writer.scatter_reduce_(1, torch.where(inside, positions, count), m, "amax")
    writer = writer[:, :count]
    written = (writer >= 0).view(batch, count, *(1 for _ in target.shape[2:]))
    target.copy_(torch.where(written, gather_rows(rows, writer), target))
