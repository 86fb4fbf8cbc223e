"""Writes rows of a cache at positions of each batch row's own."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.gather_rows import check_rows


def scatter_rows_(target: Tensor, positions: Tensor, rows: Tensor, *, backend: str | None = None) -> None:
    """target[b, positions[b, m]] = rows[b, m] for every b and m, in place.

    Args:
        target: [B, N, ...], any dtype and strides, written. A cache [B, heads, N, D] goes as `cache.transpose(1, 2)`.
        positions: [B, M] int64. One that is not in [0, N), such as -1, writes nothing. Where two are equal, the later m counts.
        rows: [B, M, ...], dtype and trailing dimensions of `target`, any strides.
        backend: see `use_backend`.

    Raises:
        InvalidArgumentError: wrong dtype, shape or device; an expanded target.
        BackendUnavailableError: the backend asked for cannot run here or has no such kernel.

    >>> cache = torch.zeros(2, 3, dtype=torch.int64)
    >>> scatter_rows_(cache, torch.tensor([[2, 0], [1, -1]]), torch.tensor([[7, 5], [9, 4]]))
    >>> cache
    tensor([[5, 0, 7],
            [0, 9, 0]])
    """
    check_rows("target", target, positions)
    arguments.writable("target", target)
    arguments.tensor("rows", rows, (target.dtype,), (*positions.shape, *target.shape[2:]))
    arguments.same_device("rows", rows, target)
    torch.ops.dlm_kernels.scatter_rows_(target.detach(), positions, rows.detach(), arguments.backend_name(backend))
