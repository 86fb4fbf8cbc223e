"""One uniform number per key."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.triton.philox import keyed_uniform as uniform_of
from dlm_kernels.triton.runtime import launch

BLOCK = 1024


@triton.jit
def keyed_uniform_kernel(seed, row_ids, step, out, count, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    u = uniform_of(
        tl.load(seed + i, mask=inside, other=0),
        tl.load(row_ids + i, mask=inside, other=0),
        tl.load(step + i, mask=inside, other=0),
        STREAM,
    )
    tl.store(out + i, u, mask=inside)


def keyed_uniform(seed: Tensor, row_ids: Tensor, step: Tensor, stream: int) -> Tensor:
    """See the reference."""
    out = torch.empty(seed.shape, dtype=torch.float32, device=seed.device)
    launch_keyed_uniform(seed, row_ids, step, stream, out)
    return out


def launch_keyed_uniform(seed: Tensor, row_ids: Tensor, step: Tensor, stream: int, out: Tensor) -> None:
    keys = (key.contiguous() for key in (seed, row_ids, step))
    grid = (triton.cdiv(out.numel(), BLOCK),)
    launch(keyed_uniform_kernel, grid, *keys, out, out.numel(), num_warps=4, STREAM=stream, BLOCK=BLOCK)


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    key = torch.zeros((128, 32), dtype=torch.int64, device="meta")
    yield "128 x 32", lambda: keyed_uniform(key, key, key, 1)
