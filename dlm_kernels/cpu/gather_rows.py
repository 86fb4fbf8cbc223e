"""Reads rows of a cache at positions of each batch row's own. See reference/gather_rows.py."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import addressof
from typing import Any

import torch
from torch import Tensor

from dlm_kernels.cpu.library import check, library, pack, rows


def gather_rows(source: Tensor, positions: Tensor) -> Tensor:
    """[B, M, ...] of source [B, N, ...] at positions [B, M]; zeros where a position is not in [0, N)."""
    out = source.new_empty((*positions.shape, *source.shape[2:]))
    move(library().dlmk_gather_rows, source, out, positions, source.shape[1])
    return out


def move(function: Callable[..., Any], source: Tensor, target: Tensor, positions: Tensor, count: int) -> None:
    """Calls `function` with what `DlmkMoveArgs` holds; trailing dimensions that both have contiguous are one run of bytes."""
    size = source.element_size()
    sizes, strides = list(source.shape[2:]), (list(source.stride()[2:]), list(target.stride()[2:]))
    run = 1
    while sizes and (sizes[-1] == 1 or all(stride[-1] == run for stride in strides)):
        run *= sizes.pop()
        for stride in strides:
            stride.pop()
    lists = [pack(sizes), *(pack([size * step for step in stride]) for stride in strides)]
    fields = [
        *(source.data_ptr(), size * source.stride(0), size * source.stride(1)),
        *(target.data_ptr(), size * target.stride(0), size * target.stride(1)),
        *(*rows(positions), *positions.shape, count, size * run),
        *(len(sizes), *(addressof(values) for values in lists), torch.get_num_threads()),
    ]
    check(function(pack(fields)))
