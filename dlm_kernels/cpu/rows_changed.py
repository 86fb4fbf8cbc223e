"""Which rows of tokens are not what they were. See reference/rows_changed.py."""

from __future__ import annotations

from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from dlm_kernels.cpu.library import library, pack, rows


def rows_changed(before: Tensor, after: Tensor, eligible: Tensor | None) -> Tensor:
    """bool [B], for tokens and eligible positions [B, L]."""
    changed = torch.empty(before.shape[:1], dtype=torch.bool)
    tensors = [pack(list(rows(tensor))) for tensor in (before, after, eligible)]
    library().dlmk_rows_changed(*tensors, *map(c_int64, before.shape), c_void_p(changed.data_ptr()))
    return changed
