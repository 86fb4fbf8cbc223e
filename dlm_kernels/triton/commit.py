"""The masked-token update."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.triton.rows import per_row
from dlm_kernels.triton.runtime import launch, strided

BLOCK = 1024


@triton.jit(do_not_specialize=["tokens", "proposal", "selected", "length", "count"])
def commit_kernel(tokens, proposal, selected, length, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b = i // length
    l = i - b * length  # noqa: E741
    chosen = per_row(selected, b, l, i < count, 0) != 0
    tl.store(tokens[0] + b * tokens[1] + l * tokens[2], per_row(proposal, b, l, chosen, 0), mask=chosen)


def commit_(tokens: Tensor, proposal: Tensor, selected: Tensor) -> None:
    """See the reference."""
    launch(
        commit_kernel, (triton.cdiv(tokens.numel(), BLOCK),), strided(tokens), strided(proposal), strided(selected),
        tokens.shape[1], tokens.numel(), num_warps=4, BLOCK=BLOCK,
    )  # fmt: skip


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    tokens = torch.empty((4, 1024), dtype=torch.int64, device="meta")
    selected = torch.empty((4, 1024), dtype=torch.bool, device="meta")
    yield "4 x 1024", lambda: commit_(tokens, tokens, selected)
