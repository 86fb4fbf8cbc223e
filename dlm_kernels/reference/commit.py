"""The masked-token update."""

from __future__ import annotations

import torch
from torch import Tensor


def commit_(tokens: Tensor, proposal: Tensor, selected: Tensor) -> None:
    """tokens[selected] = proposal[selected]; all [B, L]."""
    tokens.copy_(torch.where(selected, proposal, tokens))
