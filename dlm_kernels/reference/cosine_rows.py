"""Cosine similarity of rows."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_rows(a: Tensor, b: Tensor) -> Tensor:
    """fp32 [...] of a and b [..., D]; 0 where either is 0. Rounding fp64 to fp32 keeps it in [-1, 1]."""
    a, b = a.double(), b.double()
    norms = a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt()
    cosine = (a * b).sum(-1) / norms
    return torch.where(norms == 0, torch.zeros_like(cosine), cosine).float()
