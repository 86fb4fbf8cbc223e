"""The row of an embedding table nearest to each vector, in two launches.

1. `bounds`: |e|^2 - 2 e.x of a tile of vectors against one of the table, by `tl.dot` in fp32, becomes two numbers per vector
   and tile of the table: below the first no entry can be; below the second one certainly is.
2. `decide`: per vector, of the tiles that may hold the nearest row, all distances in fp64, differences squared. Rows that are
   equal tie exactly there, and the lowest id wins.

Scratch is two fp32 numbers for TABLE_ROWS entries of the distance matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.triton.portable_math import widen
from dlm_kernels.triton.rows import INFINITY, NOWHERE
from dlm_kernels.triton.runtime import INTERPRETED, launch, warps

TABLE_ROWS = 128
# Of a program of `bounds`: 16 products a thread of 8 warps. The interpreter pays per operation.
VECTORS, DEPTH = (256, 1024) if INTERPRETED else (32, 32)
DECIDED, DECIDED_DEPTH = (TABLE_ROWS, 1024) if INTERPRETED else (32, 64)  # what `decide` holds at a time
MOST_TILES = 1024  # whose bounds `decide` holds at a time
# A sum of D products in fp32, whatever its order, is off by at most about D 2^-24 of the sum of their magnitudes, which is at
# most (|e|^2 + |x|^2) / 2. Twice that and more, as a tensor core may cut off what it should round.
ROUNDING = tl.constexpr(2.0**-22)
ROUNDINGS_BESIDE = tl.constexpr(16)  # those that are not of the products
UNDERFLOW = tl.constexpr(1e-30)  # more than what products below the normal numbers lose


@triton.jit(do_not_specialize=["count", "entries"])
def bounds_kernel(
    x, table, lower, upper, count, entries, dimension, tiles,
    IN_DTYPE: tl.constexpr, VECTORS: tl.constexpr, ENTRIES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    r = tl.program_id(1).to(tl.int64) * VECTORS + tl.arange(0, VECTORS)
    v = tile.to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    product = tl.zeros((VECTORS, ENTRIES), tl.float32)
    x_norm, e_norm = tl.zeros((VECTORS,), tl.float32), tl.zeros((ENTRIES,), tl.float32)
    for first in range(0, dimension, DEPTH):
        d = first + tl.arange(0, DEPTH)
        inside = (d < dimension)[None, :]
        at = x[0] + r[:, None] * x[1] + d[None, :].to(tl.int64) * x[2]
        a = tl.load(at, mask=(r < count)[:, None] & inside, other=0.0)
        at = table[0] + v[:, None] * table[1] + d[None, :].to(tl.int64) * table[2]
        e = tl.load(at, mask=(v < entries)[:, None] & inside, other=0.0)
        wide_a, wide_e = widen(a), widen(e)
        if IN_DTYPE:
            product = tl.dot(a, tl.trans(e), product)
        else:
            product = tl.dot(wide_a, tl.trans(wide_e), product, input_precision="ieee")
        x_norm += tl.sum(wide_a * wide_a, 1)
        e_norm += tl.sum(wide_e * wide_e, 1)
    near = e_norm[None, :] - 2.0 * product
    scale = ROUNDING * (dimension + ROUNDINGS_BESIDE)
    slack = scale * (2.0 * e_norm[None, :] + x_norm[:, None]) + UNDERFLOW
    # What overflows fp32 is left to fp64.
    finite = (near - slack > -INFINITY) & (near + slack < INFINITY)
    there = (v < entries)[None, :]
    least = tl.min(tl.where(there, tl.where(finite, near - slack, -INFINITY), INFINITY), 1)
    most = tl.min(tl.where(there & finite, near + slack, INFINITY), 1)
    tl.store(lower + r * tiles + tile, least, mask=r < count)
    tl.store(upper + r * tiles + tile, most, mask=r < count)


@triton.jit(do_not_specialize=["entries", "tiles"])
def decide_kernel(
    x, table, lower, upper, ids, distance, entries, dimension, tiles,
    TILES: tl.constexpr, ENTRIES: tl.constexpr, DECIDED: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    bound = tl.full((), INFINITY, tl.float32)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        bound = tl.minimum(bound, tl.min(tl.load(upper + r * tiles + tile, mask=tile < tiles, other=INFINITY), 0))
    best = tl.full((), INFINITY, tl.float64)
    best_id = tl.zeros((), tl.int32)
    for begin in range(0, tiles, TILES):
        every = begin + tl.arange(0, TILES)
        candidate = tl.load(lower + r * tiles + every, mask=every < tiles, other=INFINITY) <= bound
        candidate &= every < tiles
        tile = tl.min(tl.where(candidate, every, NOWHERE), 0)
        while tile < NOWHERE:
            for start in range(tile * ENTRIES, tl.minimum((tile + 1) * ENTRIES, entries), DECIDED):
                v = start + tl.arange(0, DECIDED)
                squared = tl.zeros((DECIDED,), tl.float64)
                for first in range(0, dimension, DEPTH):
                    d = (first + tl.arange(0, DEPTH)).to(tl.int64)
                    a = widen(tl.load(x[0] + r * x[1] + d * x[2], mask=d < dimension, other=0.0))
                    at = table[0] + v[:, None].to(tl.int64) * table[1] + d[None, :] * table[2]
                    e = widen(tl.load(at, mask=(v < entries)[:, None] & (d < dimension)[None, :], other=0.0))
                    difference = a[None, :].to(tl.float64) - e.to(tl.float64)
                    squared += tl.sum(difference * difference, 1)
                squared = tl.where((v < entries) & (squared < INFINITY), squared, INFINITY)
                least = tl.min(squared, 0)
                if least < best:
                    best = least
                    best_id = tl.min(tl.where(squared == least, v, NOWHERE), 0)
            tile = tl.min(tl.where(candidate & (every > tile), every, NOWHERE), 0)
    unordered = tl.zeros((), tl.int32)
    for first in range(0, dimension, DEPTH):
        d = (first + tl.arange(0, DEPTH)).to(tl.int64)
        a = widen(tl.load(x[0] + r * x[1] + d * x[2], mask=d < dimension, other=0.0))
        unordered = tl.maximum(unordered, tl.max((a != a).to(tl.int32), 0))
    tl.store(ids + r, best_id.to(tl.int64))
    tl.store(distance + r, tl.where(unordered > 0, float("nan"), tl.sqrt(best).to(tl.float32)))


def nearest_embedding(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """See the reference."""
    ids = torch.empty(x.shape[:-1], dtype=torch.int64, device=x.device)
    distance = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    scratch = torch.empty(
        (2, ids.numel(), triton.cdiv(table.shape[0], TABLE_ROWS)), dtype=torch.float32, device=x.device
    )
    launch_nearest_embedding(x, table, ids, distance, scratch)
    return ids, distance


def launch_nearest_embedding(x: Tensor, table: Tensor, ids: Tensor, distance: Tensor, scratch: Tensor) -> None:
    entries, dimension = table.shape
    vectors = x.reshape(ids.numel(), dimension)
    sides = (vectors, *vectors.stride()), (table, *table.stride())
    lower, upper = scratch.unbind()
    count, tiles = lower.shape
    # The interpreter multiplies the bits of bf16.
    in_dtype = not INTERPRETED and x.dtype == table.dtype != torch.float32
    launch(
        bounds_kernel, (tiles, triton.cdiv(count, VECTORS)), *sides, lower, upper, count, entries, dimension, tiles,
        num_warps=8, IN_DTYPE=in_dtype, VECTORS=VECTORS, ENTRIES=TABLE_ROWS, DEPTH=DEPTH,
    )  # fmt: skip
    launch(
        decide_kernel, (count,), *sides, lower, upper, ids, distance, entries, dimension, tiles,
        num_warps=warps(DECIDED * DECIDED_DEPTH, per_thread=8), TILES=min(MOST_TILES, triton.next_power_of_2(tiles)),
        ENTRIES=TABLE_ROWS, DECIDED=DECIDED, DEPTH=DECIDED_DEPTH,
    )  # fmt: skip


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for kind, table_kind in (*((dtype, dtype) for dtype in dtypes), (torch.float32, torch.bfloat16)):
        x = torch.empty((4, 128, 768), dtype=kind, device="meta")
        table = torch.empty((50304, 768), dtype=table_kind, device="meta")
        name = f"V=50304 {str(kind).removeprefix('torch.')} in {str(table_kind).removeprefix('torch.')}"
        yield name, partial(nearest_embedding, x, table)
