"""What gather_rows and scatter_rows_ share: rows of any strides as units of up to 16 bytes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlm_kernels.cuda import module
from dlm_kernels.cuda.arguments import rows, threads_for
from dlm_kernels.cuda.module import Kernel

MOST_DIMS = 4  # kMostDims
COPY_THREADS = 256  # kCopyThreads
UNITS = (16, 8, 4, 2, 1)


def launch_copies(kernel: Kernel, source: Tensor, positions: Tensor, target: Tensor, count: int) -> None:
    """One block for each position; `count`: rows that positions may name."""
    if positions.numel() == 0 or 0 in source.shape[2:]:
        return
    dims = merged_dims(source, target)
    if len(dims) > MOST_DIMS:  # a row this scattered goes in slices of its first dimension
        for i in range(source.shape[2]):
            launch_copies(kernel, source.select(2, i), positions, target.select(2, i), count)
        return
    unit = widest_unit(source, target, dims)
    sizes, source_strides, target_strides = _in_units(dims, source.element_size(), unit)

    def side(tensor: Tensor, strides: list[int]) -> list[int]:
        batch, row = (stride * tensor.element_size() // unit for stride in tensor.stride()[:2])
        return [tensor.data_ptr(), batch, row, *strides]

    fields = [unit, positions.shape[1], count, *rows(positions), *sizes]
    fields += side(source, source_strides) + side(target, target_strides)
    module.launch(kernel, positions.numel(), threads_for(math.prod(sizes), COPY_THREADS), fields, positions.device)


def merged_dims(source: Tensor, target: Tensor) -> list[tuple[int, int, int]]:
    """(size, stride in the source, stride in the target) of a row's dimensions, neighbours joined where both allow it."""
    dims: list[tuple[int, int, int]] = []
    for size, from_stride, to_stride in zip(source.shape[2:], source.stride()[2:], target.stride()[2:], strict=True):
        if size == 1:
            continue
        if dims and dims[-1][1] == size * from_stride and dims[-1][2] == size * to_stride:
            size *= dims.pop()[0]
        dims.append((size, from_stride, to_stride))
    return dims or [(1, 1, 1)]


def widest_unit(source: Tensor, target: Tensor, dims: list[tuple[int, int, int]]) -> int:
    """Bytes that can be copied at once: what divides every address at which a run of neighbours can start."""
    width = source.element_size()
    size, *inner_strides = dims[-1]
    if inner_strides != [1, 1]:
        return width
    starts = [source.data_ptr(), target.data_ptr(), size * width]
    starts += [stride * width for tensor in (source, target) for stride in tensor.stride()[:2]]
    starts += [stride * width for _, *strides in dims[:-1] for stride in strides]
    return next(unit for unit in UNITS if all(start % unit == 0 for start in starts))


def _in_units(dims: list[tuple[int, int, int]], width: int, unit: int) -> tuple[list[int], list[int], list[int]]:
    """Sizes and both strides, in units, filled up in front to MOST_DIMS dimensions."""
    *outer, inner = dims
    if inner[1:] == (1, 1):
        inner = (inner[0] * width // unit, 1, 1)
    scaled = [(n, a * width // unit, b * width // unit) for n, a, b in outer]
    padded = [(1, 0, 0)] * (MOST_DIMS - len(dims)) + [*scaled, inner]
    sizes, from_strides, to_strides = zip(*padded, strict=True)
    return list(sizes), list(from_strides), list(to_strides)


def contiguous_rows(source: Tensor, positions: Tensor) -> Tensor:
    return torch.empty((*positions.shape, *source.shape[2:]), dtype=source.dtype, device=source.device)
