"""Reads rows of a cache at positions of each batch row's own.

A value is moved, not computed with, so it travels as an integer of its size. A row [...] is laid out by two strides: what is
contiguous merges, which leaves [heads, D] of a cache whose heads come first. Rows with more strides go slice by slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.triton.runtime import launch, tiling, warps

BLOCK = 2048  # elements that a program moves
MOST_ROWS = 16  # of those, where rows are short
CARRIERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def elements(rows, b, n, d, inner):
    """Pointers to elements d [1, BLOCK] of the rows n [ROWS] of batch rows b; rows: pointer, strides of b, n, outer, inner."""
    start = rows[0] + b * rows[1] + n * rows[2]
    outer = d // inner
    return start[:, None] + outer.to(tl.int64) * rows[3] + (d - outer * inner).to(tl.int64) * rows[4]


@triton.jit(do_not_specialize=["slots", "moved", "count"])
def gather_rows_kernel(
    source, positions, out, slots, moved, count, inner, size, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    live = r < moved
    b = r // slots
    m = r - b * slots
    n = tl.load(positions[0] + b * positions[1] + m * positions[2], mask=live, other=-1)
    inside = live[:, None] & (d < size)
    there = (n >= 0) & (n < count)
    value = tl.load(elements(source, b, n, d, inner), mask=inside & there[:, None], other=0)
    tl.store(elements(out, b, m, d, inner), value, mask=inside)


def gather_rows(source: Tensor, positions: Tensor) -> Tensor:
    """See the reference."""
    out = torch.empty((*positions.shape, *source.shape[2:]), dtype=source.dtype, device=source.device)
    launch_gather_rows(source, positions, out)
    return out


def launch_gather_rows(source: Tensor, positions: Tensor, out: Tensor) -> None:
    move(gather_rows_kernel, source, positions, out, source.shape[1])


def move(kernel: triton.JITFunction, source: Tensor, positions: Tensor, target: Tensor, count: int) -> None:
    """Launches a kernel that moves rows [B, M, ...] or [B, N, ...] of source to those of target, N = `count`."""
    if source.dtype.is_complex:
        source, target = torch.view_as_real(source), torch.view_as_real(target)
    carrier = CARRIERS[source.element_size()]
    sizes, strides = merged(source.shape[2:], source.stride()[2:], target.stride()[2:])
    if len(sizes) > 2:
        for part_source, part_target in zip(source.unbind(2), target.unbind(2), strict=True):
            move(kernel, part_source, positions, part_target, count)
        return
    missing = 2 - len(sizes)
    outer, inner = (*(1,) * missing, *sizes)
    shape = tiling(outer * inner, BLOCK, MOST_ROWS)
    moved = positions.numel()
    sides = [
        (side.view(carrier), *side.stride()[:2], *(0,) * missing, *steps)
        for side, steps in zip((source, target), zip(*strides, strict=True) if strides else ((), ()), strict=True)
    ]
    launch(
        kernel, (triton.cdiv(moved, shape.rows), shape.tiles), sides[0], (positions, *positions.stride()), sides[1],
        positions.shape[1], moved, count, inner, outer * inner,
        num_warps=warps(shape.rows * shape.block), ROWS=shape.rows, BLOCK=shape.block,
    )  # fmt: skip


def merged(sizes: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> tuple[list[int], list[tuple[int, int]]]:
    """The dimensions and their strides on both sides, with those merged that are one run on either."""
    out_sizes: list[int] = []
    out_strides: list[tuple[int, int]] = []
    for size, *steps in zip(sizes, a, b, strict=True):
        if size == 1:
            continue
        if out_sizes and all(before == step * size for before, step in zip(out_strides[-1], steps, strict=True)):
            out_sizes[-1] *= size
            out_strides[-1] = (steps[0], steps[1])
        else:
            out_sizes.append(size)
            out_strides.append((steps[0], steps[1]))
    return out_sizes, out_strides


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    positions = torch.empty((2, 64), dtype=torch.int64, device="meta")
    for dtype in (torch.bfloat16, torch.float32, torch.int64, torch.bool):
        cache = torch.empty((2, 32, 4096, 128), dtype=dtype, device="meta")
        name = str(dtype).removeprefix("torch.")
        yield f"{name} heads first", partial(gather_rows, cache.transpose(1, 2), positions)
        yield f"{name} rows", partial(gather_rows, cache[:, 0], positions)
