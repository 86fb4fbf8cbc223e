"""Writes rows of a cache at positions of each batch row's own."""

from __future__ import annotations

from torch import Tensor

from dlm_kernels.cuda.copy_rows import COPY_THREADS, launch_copies
from dlm_kernels.cuda.module import Kernel

KERNEL = Kernel("scatter_rows", "dlmk_scatter_rows", COPY_THREADS)


def scatter_rows_(target: Tensor, positions: Tensor, rows: Tensor) -> None:
    """target[b, positions[b, m]] = rows[b, m] in the order of m; positions that are not in [0, N) write nothing."""
    if rows.untyped_storage().data_ptr() == target.untyped_storage().data_ptr():
        rows = rows.clone()  # all is read before anything is written
    launch_copies(KERNEL, rows, positions, target, target.shape[1])
