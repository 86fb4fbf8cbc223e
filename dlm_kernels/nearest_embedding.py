"""Rounding of continuous diffusion language models: the nearest row of the embedding table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.errors import InvalidArgumentError
from dlm_kernels.results import NearestRows


def nearest_embedding(x: Tensor, table: Tensor, *, backend: str | None = None) -> NearestRows:
    """The row of `table` nearest to each vector in Euclidean distance. The matrix of all distances is never formed.

    Args:
        x: [..., D] fp32, bf16 or fp16, any strides.
        table: [V, D] fp32, bf16 or fp16, V >= 1.
        backend: see `use_backend`.

    Returns:
        NearestRows(ids int64 [...], distance fp32 [...]). Equal distances: lowest id. Rows of the table with NaN or
        infinities are nobody's nearest; without any other row: id 0, distance inf. A vector with NaN: id 0, distance NaN.

    Raises:
        InvalidArgumentError: wrong dtype, shape or device.
        BackendUnavailableError: the backend asked for cannot run here or has no such kernel.

    The rounding ("clamping trick") of Diffusion-LM, arXiv:2205.14217.

    >>> table = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])
    >>> nearest_embedding(torch.tensor([[3.0, 3.0], [-1.0, 0.0]]), table)
    NearestRows(ids=tensor([1, 0]), distance=tensor([1., 1.]))
    """
    x, table = _vectors("x", x), _vectors("table", table)
    if table.ndim != 2 or not table.shape[0]:
        raise InvalidArgumentError(f"table must have shape [V, D] with V >= 1, got {list(table.shape)}")
    if x.shape[-1] != table.shape[1]:
        raise InvalidArgumentError(f"x must have shape [..., {table.shape[1]}] to go with table, got {list(x.shape)}")
    arguments.same_device("table", table, x)
    return NearestRows(*torch.ops.dlm_kernels.nearest_embedding(x, table, arguments.backend_name(backend)))


def _vectors(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise InvalidArgumentError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in arguments.LOGIT_DTYPES:
        raise InvalidArgumentError(f"{name} must be float32, bfloat16 or float16, got {value.dtype}")
    if not value.ndim or not value.shape[-1]:
        raise InvalidArgumentError(f"{name} must have shape [..., D] with D >= 1, got {list(value.shape)}")
    return value.detach() if value.requires_grad else value
