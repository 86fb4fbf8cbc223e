"""Checks and normalises what the public functions are given.

Reads shapes, types and Python numbers, never a tensor's values: nothing here waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlm_kernels.dispatch import AUTO, check_name
from dlm_kernels.errors import InvalidArgumentError

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MAX_VOCABULARY = 2**26  # the random numbers are keyed by 24 bits of index / 4

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
STEP_MAX = 2**32 - 1


def backend_name(backend: str | None) -> str:
    return AUTO if backend is None else check_name(backend)


def tensor(name: str, value: Any, dtypes: Sequence[torch.dtype], shape: Sequence[int | None]) -> Tensor:
    """`value`, if it is a tensor of one of these dtypes and this shape (None: any size)."""
    if not isinstance(value, Tensor):
        raise InvalidArgumentError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        allowed = " or ".join(str(dtype) for dtype in dtypes)
        raise InvalidArgumentError(f"{name} must be {allowed}, got {value.dtype}")
    if value.ndim != len(shape) or any(
        want is not None and have != want for have, want in zip(value.shape, shape, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise InvalidArgumentError(f"{name} must have shape [{wanted}], got {list(value.shape)}")
    return value


def same_device(name: str, value: Tensor, like: Tensor) -> None:
    if value.device != like.device:
        raise InvalidArgumentError(f"{name} must be on {like.device}, got {value.device}")


def writable(name: str, value: Tensor) -> None:
    """An in-place op on an expanded tensor would write one element several times."""
    if any(stride == 0 and size > 1 for size, stride in zip(value.shape, value.stride(), strict=True)):
        raise InvalidArgumentError(
            f"{name} must own its elements, got an expanded tensor (strides {list(value.stride())})"
        )


def floats(
    name: str,
    value: Any,
    shape: Sequence[int],
    like: Tensor,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A number or a tensor as `dtype` of `shape` (expanded). Numbers are checked against the bounds."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() and value.dtype not in INTEGER_DTYPES:
            raise InvalidArgumentError(f"{name} must be a number or a tensor of numbers, got {value.dtype}")
        return _broadcast(name, value if value.dtype == dtype else value.to(dtype), shape, like)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise InvalidArgumentError(f"{name} must be a number or a tensor, got {_show(value)}")
    value = float(value)
    if (
        not -math.inf < value < math.inf  # false for NaN; `math.isfinite` cannot be traced
        or (above is not None and not value > above)
        or (at_least is not None and not value >= at_least)
        or (at_most is not None and not value <= at_most)
    ):
        low = f"({above}" if above is not None else f"[{at_least}"
        high = f"{at_most}]" if at_most is not None else "inf)"
        raise InvalidArgumentError(f"{name} must be in {low}, {high}, got {value}")
    return _constant(value, dtype, shape, like)


def integers(
    name: str, value: Any, shape: Sequence[int], like: Tensor, *, low: int = INT64_MIN, high: int = INT64_MAX
) -> Tensor:
    """A number or a tensor as int64 of `shape` (expanded). Numbers must be in [low, high]."""
    if isinstance(value, Tensor):
        if value.dtype not in INTEGER_DTYPES:
            raise InvalidArgumentError(f"{name} must be an int or an integer tensor, got {value.dtype}")
        return _broadcast(name, value if value.dtype == torch.int64 else value.to(torch.int64), shape, like)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidArgumentError(f"{name} must be an int or an integer tensor, got {_show(value)}")
    value = int(value)
    if not low <= value <= high:
        raise InvalidArgumentError(f"{name} must be in [{low}, {high}], got {value}")
    return _constant(value, torch.int64, shape, like)


def seeds(name: str, value: Any, shape: Sequence[int], like: Tensor) -> Tensor:
    """Seeds as int64; a Python int may use all 64 bits with or without a sign."""
    if isinstance(value, int) and INT64_MAX < value < 2**64:
        value -= 2**64
    return integers(name, value, shape, like)


def keys(seed: Any, row_ids: Any, step: Any, shape: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What random numbers are keyed by, int64 of `shape`."""
    return (
        seeds("seed", seed, shape, like),
        integers("row_ids", row_ids, shape, like),
        integers("step", step, shape, like, low=0, high=STEP_MAX),
    )


def vocabulary_ids(name: str, value: Sequence[int] | Tensor | None, vocabulary: int, like: Tensor) -> Tensor | None:
    """Token ids as int64 [S], or None for none. Ids in a Python sequence must be in [0, vocabulary)."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        if value.ndim != 1 or value.dtype != torch.int64:
            raise InvalidArgumentError(f"{name} must be int64 of shape [S], got {value.dtype} {list(value.shape)}")
        same_device(name, value, like)
        return value if value.shape[0] else None
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InvalidArgumentError(f"{name} must be a sequence of ints or an int64 tensor [S], got {_show(value)}")
    ids = tuple(vocabulary_id(name, item, vocabulary) for item in value)
    if not ids:
        return None
    if _may_be_kept(like):
        return _kept_ids(ids)
    if len(ids) == 1:  # filled on the device; several are copied from the host, which no CUDA graph can hold
        return torch.full((1,), ids[0], dtype=torch.int64, device=like.device)
    return torch.tensor(ids, dtype=torch.int64, device=like.device)


def vocabulary_id(name: str, value: Any, vocabulary: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidArgumentError(f"{name} must be a token id (int), got {_show(value)}")
    if not 0 <= value < vocabulary:
        raise InvalidArgumentError(f"{name} must be in [0, {vocabulary}), the vocabulary of the logits; got {value}")
    return int(value)


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise InvalidArgumentError(f"{name} must be one of {tuple(allowed)}, got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{name} must be True or False, got {_show(value)}")
    return value


def default_row_ids(shape: Sequence[int], like: Tensor, requests: int = 1) -> Tensor:
    """int64 `request << 32 | position` of `shape`: rows in order, split evenly over `requests`."""
    if _may_be_kept(like):
        return _kept_row_ids(tuple(shape), requests)
    return _row_ids(shape, requests, like.device)


def _row_ids(shape: Sequence[int], requests: int, device: torch.device) -> Tensor:
    positions = math.prod(shape) // max(requests, 1)
    request = torch.arange(requests, device=device)[:, None] << 32
    return (request | torch.arange(positions, device=device)).view(shape)


@lru_cache(maxsize=32)
def _kept_row_ids(shape: tuple[int, ...], requests: int) -> Tensor:
    with torch.inference_mode(False):
        return _row_ids(shape, requests, torch.device("cpu"))


def _broadcast(name: str, value: Tensor, shape: Sequence[int], like: Tensor) -> Tensor:
    if value.shape == shape and value.device == like.device:
        return value
    if value.ndim == 0 and value.device != like.device:
        value = value.to(like.device)
    same_device(name, value, like)
    missing = len(shape) - value.ndim
    if missing < 0 or any(have not in (1, want) for have, want in zip(value.shape, list(shape)[missing:], strict=True)):
        raise InvalidArgumentError(f"{name} must be broadcastable to {list(shape)}, got {list(value.shape)}")
    return value.expand(shape)


def _may_be_kept(like: Tensor) -> bool:
    """Whether what is made for this tensor may serve later calls. On the CPU making it costs as much as a small op.

    Not on a GPU (memory made while a CUDA graph is captured belongs to the graph) nor while tracing (it would be fake).
    """
    return type(like) is Tensor and like.device.type == "cpu" and not torch.compiler.is_compiling()


def _constant(value: float, dtype: torch.dtype, shape: Sequence[int], like: Tensor) -> Tensor:
    """A number as an expanded tensor."""
    if _may_be_kept(like):
        return _kept_constant(value, dtype, tuple(shape))
    return torch.full((), value, dtype=dtype, device=like.device).expand(shape)


@lru_cache(maxsize=512)
def _kept_constant(value: float, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((), value, dtype=dtype, device="cpu").expand(shape)


@lru_cache(maxsize=64)
def _kept_ids(ids: tuple[int, ...]) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(ids, dtype=torch.int64)


def _show(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"
