"""Reads rows of a cache at positions of each batch row's own."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.errors import InvalidArgumentError


def gather_rows(source: Tensor, positions: Tensor, *, backend: str | None = None) -> Tensor:
    """source[b, positions[b, m]] for every b and m.

    Args:
        source: [B, N, ...], any dtype and strides. A cache [B, heads, N, D] goes as `cache.transpose(1, 2)`.
        positions: [B, M] int64. Rows with fewer than M positions are filled up with -1.
        backend: see `use_backend`.

    Returns:
        [B, M, ...], zeros where the position is not in [0, N).

    Raises:
        InvalidArgumentError: wrong dtype, shape or device.
        BackendUnavailableError: the backend asked for cannot run here or has no such kernel.

    >>> gather_rows(torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.tensor([[2, 0], [1, -1]]))
    tensor([[7, 5],
            [9, 0]])
    """
    check_rows("source", source, positions)
    return torch.ops.dlm_kernels.gather_rows(source.detach(), positions, arguments.backend_name(backend))


def check_rows(name: str, values: Tensor, positions: Tensor) -> None:
    """values [B, N, ...] and positions [B, M]."""
    if not isinstance(values, Tensor) or values.ndim < 2:
        shown = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InvalidArgumentError(f"{name} must be a tensor of shape [B, N, ...], got {shown}")
    arguments.tensor("positions", positions, (torch.int64,), (values.shape[0], None))
    arguments.same_device("positions", positions, values)
