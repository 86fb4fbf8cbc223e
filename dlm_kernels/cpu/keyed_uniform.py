"""One uniform number per key."""

from __future__ import annotations

from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from dlm_kernels.cpu.library import library


def keyed_uniform(seed: Tensor, row_ids: Tensor, step: Tensor, stream: int) -> Tensor:
    """Uniform in (0, 1), fp32 [...], for keys int64 [...]."""
    keys = [key.contiguous() for key in (seed, row_ids, step)]
    out = torch.empty(seed.shape, dtype=torch.float32)
    addresses = [c_void_p(key.data_ptr()) for key in keys]
    library().dlmk_keyed_uniform(*addresses, c_int64(out.numel()), c_int64(stream), c_void_p(out.data_ptr()))
    return out
