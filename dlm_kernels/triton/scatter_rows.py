"""Writes rows of a cache at positions of each batch row's own.

Which of several rows for one position counts is settled before anything is written: a row that a later one overrides writes
nothing, so no two programs write the same place. Finding out takes M comparisons a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.triton.gather_rows import elements, move

SLOTS = tl.constexpr(32)  # positions compared at a time


@triton.jit(do_not_specialize=["slots", "moved", "count"])
def scatter_rows_kernel(
    rows, positions, target, slots, moved, count, inner, size, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    live = r < moved
    b = r // slots
    m = r - b * slots
    n = tl.load(positions[0] + b * positions[1] + m * positions[2], mask=live, other=-1)
    live &= (n >= 0) & (n < count)
    for first in range(0, slots, SLOTS):
        later = (first + tl.arange(0, SLOTS)).to(tl.int64)[None, :]
        rivals = live[:, None] & (later > m[:, None]) & (later < slots)
        at = positions[0] + b[:, None] * positions[1] + later * positions[2]
        overridden = tl.load(at, mask=rivals, other=-1) == n[:, None]
        live &= tl.max(overridden.to(tl.int32), 1) == 0
    inside = live[:, None] & (d < size)
    value = tl.load(elements(rows, b, m, d, inner), mask=inside, other=0)
    tl.store(elements(target, b, n, d, inner), value, mask=inside)


def scatter_rows_(target: Tensor, positions: Tensor, rows: Tensor) -> None:
    """See the reference."""
    if rows.untyped_storage().data_ptr() == target.untyped_storage().data_ptr():
        rows = rows.clone()  # all is read before anything is written
    launch_scatter_rows_(target, positions, rows)


def launch_scatter_rows_(target: Tensor, positions: Tensor, rows: Tensor) -> None:
    move(scatter_rows_kernel, rows, positions, target, target.shape[1])


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    positions = torch.empty((2, 64), dtype=torch.int64, device="meta")
    for dtype in (torch.bfloat16, torch.float32, torch.int64, torch.bool):
        cache = torch.empty((2, 32, 4096, 128), dtype=dtype, device="meta")
        rows = torch.empty((2, 64, 32, 128), dtype=dtype, device="meta")
        name = str(dtype).removeprefix("torch.")
        yield f"{name} heads first", partial(launch_scatter_rows_, cache.transpose(1, 2), positions, rows)
        yield f"{name} rows", partial(launch_scatter_rows_, cache[:, 0], positions, rows[:, :, 0])
