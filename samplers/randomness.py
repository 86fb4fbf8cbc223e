"""Seeds and request ids: the keys of a request's random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError

MAX_REQUEST_ID = 2**31 - 1


def request_keys(
    seed: int | Sequence[int] | Tensor,
    request_ids: Sequence[int] | Tensor | None,
    generator: torch.Generator | None,
    rows: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """(seed int64 [B], request id int64 [B]) of a batch.

    One seed: request r is keyed (seed, r). One seed per row: every row is keyed (its seed, 0).
    """
    if generator is not None:
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    seeds = _integers("seed", seed, rows)
    if request_ids is None:
        ids = torch.arange(rows) if seeds.ndim == 0 else torch.zeros(rows, dtype=torch.int64)
    else:
        ids = _integers("request_ids", request_ids, rows)
        if ids.ndim == 0 or bool(((ids < 0) | (ids > MAX_REQUEST_ID)).any()):
            raise InvalidArgumentError(f"request_ids must be {rows} ints in [0, {MAX_REQUEST_ID}], got {request_ids!r}")
    return seeds.to(device).expand(rows), ids.to(device)


def _integers(name: str, value: Any, rows: int) -> Tensor:
    try:
        numbers = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(f"{name} must be an int or {rows} ints, got {value!r}") from error
    if numbers.dtype != torch.int64 or numbers.ndim > 1 or (numbers.ndim == 1 and numbers.numel() != rows):
        raise InvalidArgumentError(f"{name} must be an int or {rows} ints, one per row; got {value!r}")
    return numbers
