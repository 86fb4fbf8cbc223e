"""Cosine similarity of rows: one program a row, or some short rows; sums in fp64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.triton.portable_math import widen
from dlm_kernels.triton.runtime import launch, tiling, warps

BLOCK = 2048  # elements of each side that a program holds at a time
MOST_ROWS = 16  # of those, where rows are short


@triton.jit(do_not_specialize=["count"])
def cosine_rows_kernel(a, b, out, count, dimension, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = r < count
    aa, bb, ab = tl.zeros((ROWS,), tl.float64), tl.zeros((ROWS,), tl.float64), tl.zeros((ROWS,), tl.float64)
    for first in range(0, dimension, BLOCK):
        d = first + tl.arange(0, BLOCK)
        inside = live[:, None] & (d < dimension)[None, :]
        at = r[:, None] * a[1] + d[None, :].to(tl.int64) * a[2]
        x = widen(tl.load(a[0] + at, mask=inside, other=0.0)).to(tl.float64)
        at = r[:, None] * b[1] + d[None, :].to(tl.int64) * b[2]
        y = widen(tl.load(b[0] + at, mask=inside, other=0.0)).to(tl.float64)
        aa += tl.sum(x * x, 1)
        bb += tl.sum(y * y, 1)
        ab += tl.sum(x * y, 1)
    norms = tl.sqrt(aa) * tl.sqrt(bb)
    nothing = norms == 0.0
    cosine = tl.where(nothing, 0.0, ab / tl.where(nothing, 1.0, norms))
    tl.store(out + r, cosine.to(tl.float32), mask=live)


def cosine_rows(a: Tensor, b: Tensor) -> Tensor:
    """See the reference."""
    out = torch.empty(a.shape[:-1], dtype=torch.float32, device=a.device)
    launch_cosine_rows(a, b, out)
    return out


def launch_cosine_rows(a: Tensor, b: Tensor, out: Tensor) -> None:
    dimension, count = a.shape[-1], out.numel()
    shape = tiling(dimension, BLOCK, MOST_ROWS)
    x, y = (v.reshape(count, dimension) for v in (a, b))
    launch(
        cosine_rows_kernel, (triton.cdiv(count, shape.rows),), (x, *x.stride()), (y, *y.stride()), out, count, dimension,
        num_warps=warps(shape.rows * shape.block, per_thread=8), ROWS=shape.rows, BLOCK=shape.block,
    )  # fmt: skip


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for dimension in (128, 4096):
            x = torch.empty((2, 1024, dimension), dtype=dtype, device="meta")
            yield f"D={dimension} {str(dtype).removeprefix('torch.')}", partial(cosine_rows, x, x)
