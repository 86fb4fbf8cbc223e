"""Which positions of each row commit this step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.errors import InvalidArgumentError

SCORE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Rules(NamedTuple):
    """Selection arguments as the operators take them."""

    quota: Tensor | None
    threshold: Tensor | None
    factor: Tensor | None
    entropy_bound: Tensor | None
    at_least: Tensor
    strict: bool


def check_rules(
    rows: int, like: Tensor, *, quota: Any, threshold: Any, factor: Any, entropy_bound: Any, at_least: Any, strict: Any
) -> Rules:
    """The rules for a batch of `rows`, per-row tensors [B]."""
    shape = (rows,)
    return Rules(
        None if quota is None else arguments.integers("quota", quota, shape, like, low=0),
        None if threshold is None else arguments.floats("threshold", threshold, shape, like, above=0.0, at_most=1.0),
        None if factor is None else arguments.floats("factor", factor, shape, like, above=0.0),
        None if entropy_bound is None else arguments.floats("entropy_bound", entropy_bound, shape, like, at_least=0.0),
        arguments.integers("at_least", at_least, shape, like, low=0),
        arguments.flag("strict", strict),
    )


def select_positions(
    score: Tensor,
    eligible: Tensor,
    *,
    quota: int | Tensor | None = None,
    threshold: float | Tensor | None = None,
    factor: float | Tensor | None = None,
    entropy_bound: float | Tensor | None = None,
    entropy: Tensor | None = None,
    at_least: int | Tensor = 1,
    strict: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Positions that commit: the union of the rules given, and the `at_least` best of every row in any case.

    The rank of a position is its score's, highest first; equal scores (-0.0 equals 0.0) rank by position, lowest first; NaN
    ranks last and never meets a threshold. Rules take a number or a tensor [B], one per row; the values of tensors are not
    checked.

    Args:
        score: [B, L] fp32, bf16 or fp16.
        eligible: bool [B, L]; nothing else is ever selected.
        quota: the `quota` best.
        threshold: every score >= threshold, in (0, 1]; > threshold with `strict` (Fast-dLLM, arXiv:2505.22618).
        factor: f > 0: the n best, n the largest with (n + 1)(1 - c_n) <= f, c_n the n-th best score (Fast-dLLM, theorem 1);
            evaluated in fp32 as c_n >= 1 - f / (n + 1).
        entropy_bound: gamma >= 0: the k positions of least entropy, k the largest whose sum of entropies without the greatest
            is at most gamma (EB-Sampler, arXiv:2505.24857). Needs `entropy`.
        entropy: [B, L] fp32, bf16 or fp16.
        at_least: that many of the best, as far as there are eligible ones; 0 allows none.
        strict: see `threshold`.
        backend: see `use_backend`.

    Returns:
        bool [B, L].

    Raises:
        InvalidArgumentError: wrong dtype, shape or device, a number outside its range, an entropy bound without entropies.
        BackendUnavailableError: the backend asked for cannot run here.

    >>> score = torch.tensor([[0.5, 0.95, 0.2, 0.95]])
    >>> eligible = torch.tensor([[True, True, True, False]])
    >>> select_positions(score, eligible, threshold=0.9)
    tensor([[False,  True, False, False]])
    >>> select_positions(score, eligible, quota=2)
    tensor([[ True,  True, False, False]])
    """
    arguments.tensor("score", score, SCORE_DTYPES, (None, None))
    arguments.tensor("eligible", eligible, (torch.bool,), score.shape)
    arguments.same_device("eligible", eligible, score)
    if entropy is not None:
        arguments.tensor("entropy", entropy, SCORE_DTYPES, score.shape)
        arguments.same_device("entropy", entropy, score)
        entropy = entropy.detach().float()
    elif entropy_bound is not None:
        raise InvalidArgumentError("entropy must be a tensor [B, L] when entropy_bound is given, got None")
    rules = check_rules(
        score.shape[0],
        score,
        quota=quota,
        threshold=threshold,
        factor=factor,
        entropy_bound=entropy_bound,
        at_least=at_least,
        strict=strict,
    )
    return torch.ops.dlm_kernels.select_positions(
        score.detach().float(), eligible, *rules[:4], entropy, *rules[4:], arguments.backend_name(backend)
    )
