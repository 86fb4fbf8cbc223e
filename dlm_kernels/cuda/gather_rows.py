"""Reads rows of a cache at positions of each batch row's own."""

from __future__ import annotations

from torch import Tensor

from dlm_kernels.cuda.copy_rows import COPY_THREADS, contiguous_rows, launch_copies
from dlm_kernels.cuda.module import Kernel

KERNEL = Kernel("gather_rows", "dlmk_gather_rows", COPY_THREADS)


def gather_rows(source: Tensor, positions: Tensor) -> Tensor:
    """[B, M, ...] of source [B, N, ...] at positions [B, M]; zeros where a position is not in [0, N)."""
    out = contiguous_rows(source, positions)
    launch_copies(KERNEL, source, positions, out, source.shape[1])
    return out
