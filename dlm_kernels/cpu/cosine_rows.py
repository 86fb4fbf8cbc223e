"""Cosine similarity of rows. See reference/cosine_rows.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cpu.library import as_rows, check, library, pack
from dlm_kernels.cpu.score_tokens import DTYPES


def cosine_rows(a: Tensor, b: Tensor) -> Tensor:
    """fp32 [...] of a and b [..., D]; 0 where either is 0."""
    cosine = torch.empty(a.shape[:-1])
    a, b = as_rows(a), as_rows(b)
    fields = [
        *(a.data_ptr(), DTYPES[a.dtype], a.stride(0), a.stride(1)),
        *(b.data_ptr(), DTYPES[b.dtype], b.stride(0), b.stride(1)),
        *(*a.shape, torch.get_num_threads(), cosine.data_ptr()),
    ]
    check(library().dlmk_cosine_rows(pack(fields)))
    return cosine
