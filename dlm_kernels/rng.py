"""Random numbers keyed by (seed, request, position, step), the same in every batch and on every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.errors import InvalidArgumentError
from dlm_kernels.reference.philox import gumbel_noise, philox4x32

__all__ = ["gumbel", "keyed_uniform", "make_row_ids", "philox4x32"]

MAX_STREAM = 255


def make_row_ids(request: int | Tensor, position: int | Tensor) -> Tensor:
    """int64 row ids `request << 32 | position`; request in [0, 2^31), position in [0, 2^32), broadcast.

    >>> make_row_ids(torch.tensor([[0], [1]]), torch.arange(2))
    tensor([[         0,          1],
            [4294967296, 4294967297]])
    """
    request, position = torch.as_tensor(request), torch.as_tensor(position)
    for name, value in (("request", request), ("position", position)):
        if value.dtype not in arguments.INTEGER_DTYPES:
            raise InvalidArgumentError(f"{name} must be an int or an integer tensor, got {value.dtype}")
    return (request.long() << 32) | position.long()


def keyed_uniform(
    seed: int | Tensor, row_ids: int | Tensor, step: int | Tensor, *, stream: int = 1, backend: str | None = None
) -> Tensor:
    """One uniform number in (0, 1) per key, fp32, of the arguments' broadcast shape.

    Args:
        seed: 64 bits.
        row_ids: see `make_row_ids`.
        step: in [0, 2^32).
        stream: in [0, 255]; the ops use 0 to 5 (`reference/philox.py` lists them), so take others for draws of your own.
        backend: see `use_backend`.

    Raises:
        InvalidArgumentError: wrong dtype, shapes that do not broadcast, a number outside its range.
        BackendUnavailableError: the backend asked for cannot run here.

    Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

    >>> keyed_uniform(0, torch.arange(3), 0)
    tensor([0.2571, 0.3120, 0.0618])
    """
    keys = {"seed": seed, "row_ids": row_ids, "step": step}
    tensors = [value for value in keys.values() if isinstance(value, Tensor)]
    like = next((value for value in tensors if value.ndim), tensors[0] if tensors else torch.empty(0))
    try:
        shape = torch.broadcast_shapes(*(value.shape for value in tensors))
    except RuntimeError as error:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in keys.items() if isinstance(value, Tensor))
        raise InvalidArgumentError(f"seed, row_ids and step must broadcast together, got {shapes}") from error
    return torch.ops.dlm_kernels.keyed_uniform(
        *arguments.keys(seed, row_ids, step, shape, like),
        _stream(stream),
        arguments.backend_name(backend),
    )


def gumbel(seed: int | Tensor, row_ids: int | Tensor, step: int | Tensor, vocabulary: int) -> Tensor:
    """The noise that `score_tokens` adds to logits / temperature: fp32 [..., V] for keys [...].

    >>> gumbel(0, 0, 0, 3)
    tensor([ 0.6748, -0.7536, -0.2857])
    """
    keys = torch.broadcast_tensors(*(torch.as_tensor(key) for key in (seed, row_ids, step)))
    return gumbel_noise(keys[0], keys[1], keys[2], vocabulary)


def _stream(stream: int) -> int:
    if isinstance(stream, bool) or not isinstance(stream, int) or not 0 <= stream <= MAX_STREAM:
        raise InvalidArgumentError(f"stream must be an int in [0, {MAX_STREAM}], got {stream!r}")
    return stream
