"""The row of an embedding table nearest to each vector. See reference/nearest_embedding.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cpu.library import check, library, pack
from dlm_kernels.cpu.score_tokens import DTYPES


def nearest_embedding(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """(ids int64 [...], Euclidean distance fp32 [...]) of x [..., D] in table [V, D]."""
    shape, dimension = x.shape[:-1], x.shape[-1]
    x, table = _rows(x.reshape(-1, dimension)), _rows(table)
    ids, distance = torch.empty(shape, dtype=torch.int64), torch.empty(shape)
    fields = [
        *(x.data_ptr(), DTYPES[x.dtype], x.shape[0], x.stride(0)),
        *(table.data_ptr(), DTYPES[table.dtype], table.shape[0], table.stride(0)),
        *(dimension, torch.get_num_threads(), ids.data_ptr(), distance.data_ptr()),
    ]
    check(library().dlmk_nearest_embedding(pack(fields)))
    return ids, distance


def _rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
