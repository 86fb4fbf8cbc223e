"""Which rows of tokens are not what they were: one program a row, which stops at the first tile that differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.triton.runtime import launch, strided

BLOCK = 1024


@triton.jit(do_not_specialize=["length"])
def rows_changed_kernel(before, after, eligible, out, length, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    first = 0
    found = 0
    while (first < length) & (found == 0):
        l = first + tl.arange(0, BLOCK).to(tl.int64)  # noqa: E741 - the name it has everywhere
        inside = l < length
        x = tl.load(before[0] + b * before[1] + l * before[2], mask=inside, other=0)
        y = tl.load(after[0] + b * after[1] + l * after[2], mask=inside, other=0)
        differs = x != y
        if eligible is not None:
            differs &= tl.load(eligible[0] + b * eligible[1] + l * eligible[2], mask=inside, other=0) != 0
        found = tl.max(differs.to(tl.int32), 0)
        first += BLOCK
    tl.store(out + b, found != 0)


def rows_changed(before: Tensor, after: Tensor, eligible: Tensor | None) -> Tensor:
    """See the reference."""
    out = torch.empty(before.shape[0], dtype=torch.bool, device=before.device)
    launch_rows_changed(before, after, eligible, out)
    return out


def launch_rows_changed(before: Tensor, after: Tensor, eligible: Tensor | None, out: Tensor) -> None:
    rows, length = before.shape
    launch(
        rows_changed_kernel, (rows,), strided(before), strided(after), strided(eligible), out, length,
        num_warps=4, BLOCK=BLOCK,
    )  # fmt: skip


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    tokens = torch.empty((8, 4096), dtype=torch.int64, device="meta")
    yield "8 x 4096", lambda: rows_changed(tokens, tokens, None)
    yield "8 x 4096, eligible", lambda: rows_changed(tokens, tokens, tokens == 0)
