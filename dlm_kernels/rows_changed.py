"""Which rows need another forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels


def rows_changed(
    before: Tensor, after: Tensor, *, eligible: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Whether each row of tokens differs from what it was.

    The test is per row: a denoiser that is not given the time has the same logits for a row that did not change, whatever its
    batch did (MDLM's cache, arXiv:2406.07524, asks the whole batch at once).

    Args:
        before, after: [B, L] int64, any strides.
        eligible: bool [B, L]: positions that count. Default: all.
        backend: see `use_backend`.

    Returns:
        bool [B].

    Raises:
        InvalidArgumentError: wrong dtype, shape or device.
        BackendUnavailableError: the backend asked for cannot run here or has no such kernel.

    >>> rows_changed(torch.tensor([[1, 9], [1, 9]]), torch.tensor([[1, 9], [1, 4]]))
    tensor([False,  True])
    """
    arguments.tensor("before", before, (torch.int64,), (None, None))
    arguments.tensor("after", after, (torch.int64,), before.shape)
    arguments.same_device("after", after, before)
    if eligible is not None:
        arguments.tensor("eligible", eligible, (torch.bool,), before.shape)
        arguments.same_device("eligible", eligible, before)
    return torch.ops.dlm_kernels.rows_changed(before, after, eligible, arguments.backend_name(backend))
