"""Tensors as fields of the argument structs in `csrc/cuda/arguments.h`."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

SHARED_KEYS = 4096  # kSharedKeys: rows of more positions are ranked in global memory
SELECT_THREADS = 512  # kSelectThreads


def rows(tensor: Tensor | None) -> tuple[int, int, int]:
    """A [B, L] argument as `DlmkRows`; zeros when absent."""
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def per_row(tensor: Tensor | None) -> tuple[int, int, int]:
    """A [B] argument as `DlmkRows`; zeros when absent."""
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0), 0)


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def key_scratch(like: Tensor) -> Tensor | None:
    """Memory in which the rows of a [B, L, ...] tensor are ranked if they are too long for a block's own."""
    batch, length = like.shape[:2]
    if length <= SHARED_KEYS:
        return None
    return torch.empty(batch, padded(length), dtype=torch.int64, device=like.device)


def padded(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def threads_for(length: int, most: int) -> int:
    """Threads for a block that goes through `length` items: whole warps, a power of two of them."""
    return max(32, min(most, padded(length)))


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of the GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count
