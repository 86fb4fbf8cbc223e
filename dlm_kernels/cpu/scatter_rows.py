"""Writes rows of a cache at positions of each batch row's own. See reference/scatter_rows.py."""

from __future__ import annotations

from torch import Tensor

from dlm_kernels.cpu.gather_rows import move
from dlm_kernels.cpu.library import library


def scatter_rows_(target: Tensor, positions: Tensor, rows: Tensor) -> None:
    """target[b, positions[b, m]] = rows[b, m] in the order of m; positions that are not in [0, N) write nothing."""
    if rows.untyped_storage().data_ptr() == target.untyped_storage().data_ptr():
        rows = rows.clone()  # all is read before anything is written
    move(library().dlmk_scatter_rows, rows, target, positions, target.shape[1])
