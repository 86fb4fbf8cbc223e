"""The masked-token update, in place."""

from __future__ import annotations

from torch import Tensor

from dlm_kernels.cuda import module
from dlm_kernels.cuda.arguments import rows
from dlm_kernels.cuda.module import Kernel

KERNEL = Kernel("commit", "dlmk_commit", 256)


def commit_(tokens: Tensor, proposal: Tensor, selected: Tensor) -> None:
    """tokens[selected] = proposal[selected]; all [B, L]."""
    if tokens.numel() == 0:
        return
    fields = [*tokens.shape, *rows(tokens), *rows(proposal), *rows(selected)]
    blocks = -(-tokens.numel() // KERNEL.most_threads)
    module.launch(KERNEL, blocks, KERNEL.most_threads, fields, tokens.device)
