"""The masked-token update, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels


def commit_(tokens: Tensor, proposal: Tensor, selected: Tensor, *, backend: str | None = None) -> None:
    """tokens[selected] = proposal[selected], in place.

    Args:
        tokens: [B, L] int64, any strides, written.
        proposal: [B, L] int64.
        selected: bool [B, L].
        backend: see `use_backend`.

    Raises:
        InvalidArgumentError: wrong dtype, shape or device; expanded tokens.
        BackendUnavailableError: the backend asked for cannot run here.

    The absorbing-state update of masked diffusion language models (MDLM, arXiv:2406.07524).

    >>> tokens = torch.tensor([[7, 9, 9]])
    >>> commit_(tokens, torch.tensor([[1, 2, 3]]), torch.tensor([[False, True, False]]))
    >>> tokens
    tensor([[7, 2, 9]])
    """
    arguments.tensor("tokens", tokens, (torch.int64,), (None, None))
    arguments.writable("tokens", tokens)
    arguments.tensor("proposal", proposal, (torch.int64,), tokens.shape)
    arguments.same_device("proposal", proposal, tokens)
    arguments.tensor("selected", selected, (torch.bool,), tokens.shape)
    arguments.same_device("selected", selected, tokens)
    torch.ops.dlm_kernels.commit_(tokens, proposal, selected, arguments.backend_name(backend))
