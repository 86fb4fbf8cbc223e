"""One uniform number per key."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cuda import module
from dlm_kernels.cuda.module import Kernel

KERNEL = Kernel("keyed_uniform", "dlmk_keyed_uniform", 256)


def keyed_uniform(seed: Tensor, row_ids: Tensor, step: Tensor, stream: int) -> Tensor:
    """Uniform in (0, 1), fp32 [...], for keys int64 [...]."""
    out = torch.empty(seed.shape, dtype=torch.float32, device=seed.device)
    if out.numel():
        keys = [key.contiguous() for key in (seed, row_ids, step)]
        fields = [out.numel(), stream, *(tensor.data_ptr() for tensor in (*keys, out))]
        module.launch(KERNEL, -(-out.numel() // KERNEL.most_threads), KERNEL.most_threads, fields, out.device)
    return out
