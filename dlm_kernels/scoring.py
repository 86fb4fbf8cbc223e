"""The scoring arguments that `score_tokens` and the steps share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels.errors import InvalidArgumentError

CONFIDENCES = ("model", "sampling")
FILTER_ORDERS = ("top_k_first", "top_p_first")


class Scoring(NamedTuple):
    """Scoring arguments as the operators take them."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seed: Tensor
    row_ids: Tensor
    step: Tensor
    suppress_ids: Tensor | None
    eligible: Tensor | None
    sampling_confidence: bool
    top_p_first: bool


def check_logits(logits: Any, least_rank: int, most_rank: int | None = None, name: str = "logits") -> Tensor:
    """Logits that the ops can take: off the autograd tape, last dimension contiguous (a copy only if it is not)."""
    if not isinstance(logits, Tensor):
        raise InvalidArgumentError(f"{name} must be a tensor, got {type(logits).__name__}")
    if logits.dtype not in arguments.LOGIT_DTYPES:
        raise InvalidArgumentError(f"{name} must be float32, bfloat16 or float16, got {logits.dtype}")
    if logits.ndim < least_rank or (most_rank is not None and logits.ndim > most_rank):
        wanted = "[..., V]" if most_rank is None else "[B, L, V]"
        raise InvalidArgumentError(f"{name} must have shape {wanted}, got {list(logits.shape)}")
    if not 1 <= logits.shape[-1] <= arguments.MAX_VOCABULARY:
        raise InvalidArgumentError(f"{name} must have a vocabulary of 1 to 2^26 entries, got {logits.shape[-1]}")
    if logits.requires_grad:
        logits = logits.detach()
    return logits if logits.stride(-1) == 1 else logits.contiguous()


def check_step(tokens: Any, logits: Any, name: str = "logits") -> Tensor:
    """tokens int64 [B, L] that can be written; logits [B, L, V] to go with them, as the ops can take them."""
    arguments.tensor("tokens", tokens, (torch.int64,), (None, None))
    arguments.writable("tokens", tokens)
    logits = check_logits(logits, 3, 3, name)
    arguments.same_device(name, logits, tokens)
    if logits.shape[:2] != tokens.shape:
        wanted = f"[{tokens.shape[0]}, {tokens.shape[1]}, V]"
        raise InvalidArgumentError(f"{name} must have shape {wanted} to go with tokens, got {list(logits.shape)}")
    return logits


def canvas_row_ids(tokens: Tensor, row_ids: Any) -> Any:
    """`row_ids`, or request b, position l, that is b << 32 | l."""
    if row_ids is not None:
        return row_ids
    return arguments.default_row_ids(tokens.shape[:2], tokens, requests=tokens.shape[0])


def normalise(
    logits: Tensor,
    shape: Sequence[int],
    row_ids: Any,
    *,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    seed: Any,
    step: Any,
    suppress_ids: Any,
    eligible: Any,
    confidence: Any,
    filter_order: Any,
    vocabulary: int | None = None,
) -> Scoring:
    """Checks the arguments against logits of row shape `shape`; per-row tensors come out in that shape.

    Where there are no logits, any tensor on their device, and their `vocabulary`.
    """
    if eligible is not None:
        arguments.tensor("eligible", eligible, (torch.bool,), shape)
        arguments.same_device("eligible", eligible, logits)
    return Scoring(
        arguments.floats("temperature", temperature, shape, logits, at_least=0.0),
        arguments.integers("top_k", top_k, shape, logits, low=0),
        arguments.floats("top_p", top_p, shape, logits, above=0.0, at_most=1.0),
        *arguments.keys(seed, row_ids, step, shape, logits),
        arguments.vocabulary_ids("suppress_ids", suppress_ids, vocabulary or logits.shape[-1], logits),
        eligible,
        arguments.choice("confidence", confidence, CONFIDENCES) == "sampling",
        arguments.choice("filter_order", filter_order, FILTER_ORDERS) == "top_p_first",
    )
