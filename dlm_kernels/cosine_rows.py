"""How much the features of each position moved."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.errors import InvalidArgumentError


def cosine_rows(a: Tensor, b: Tensor, *, backend: str | None = None) -> Tensor:
    """Cosine similarity of each vector of `a` with that of `b`.

    Args:
        a: [..., D] fp32, bf16 or fp16, any strides.
        b: the same shape; fp32, bf16 or fp16.
        backend: see `use_backend`.

    Returns:
        fp32 [...], in [-1, 1]. 0 if either vector is 0, so that a cache of zeros counts as out of date; NaN if either has NaN
        or infinities.

    Raises:
        InvalidArgumentError: wrong dtype, shape or device.
        BackendUnavailableError: the backend asked for cannot run here or has no such kernel.

    What dLLM-Cache (arXiv:2506.06295) decides on: the values that changed most are computed anew.

    >>> cosine_rows(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [6.0, 8.0]]))
    tensor([0., 1.])
    """
    if not isinstance(a, Tensor) or not a.ndim:
        shown = list(a.shape) if isinstance(a, Tensor) else type(a).__name__
        raise InvalidArgumentError(f"a must be a tensor of shape [..., D], got {shown}")
    arguments.tensor("a", a, arguments.LOGIT_DTYPES, a.shape)
    arguments.tensor("b", b, arguments.LOGIT_DTYPES, a.shape)
    arguments.same_device("b", b, a)
    return torch.ops.dlm_kernels.cosine_rows(a.detach(), b.detach(), arguments.backend_name(backend))
