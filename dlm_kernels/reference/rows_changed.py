"""Which rows of tokens are not what they were."""

from __future__ import annotations

from torch import Tensor


def rows_changed(before: Tensor, after: Tensor, eligible: Tensor | None) -> Tensor:
    """bool [B], for tokens and eligible positions [B, L]."""
    differs = before != after
    if eligible is not None:
        differs &= eligible
    return differs.any(-1)
