"""Remasks committed tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.errors import InvalidArgumentError
from dlm_kernels.results import RevokeStats
from dlm_kernels.scoring import canvas_row_ids
from dlm_kernels.select_positions import SCORE_DTYPES


def revoke_(
    tokens: Tensor,
    confidence: Tensor,
    *,
    mask_id: int,
    eligible: Tensor | None = None,
    threshold: float | Tensor | None = None,
    quota: int | Tensor | None = None,
    probability: float | Tensor | None = None,
    committed: int | Tensor | None = None,
    seed: int | Tensor = 0,
    row_ids: int | Tensor | None = None,
    step: int | Tensor = 0,
    backend: str | None = None,
) -> RevokeStats:
    """Turn committed tokens back into masks, in place: the union of the rules given.

    A loop that commits until nothing is masked ends only if it gains ground. With `committed`, the number of positions that
    this step committed, fewer than that many are remasked in each row (none where it committed none), the least confident
    first. `threshold` and `quota` need it. `probability` may go without: there a grid of times ends the loop, and a limit
    would change the distribution.

    Args:
        tokens: [B, L] int64, any strides, written.
        confidence: [B, L] fp32, bf16 or fp16: how sure the verifier is of the token that stands there.
        mask_id: the id that marks an open position; positions that hold it are left alone.
        eligible: bool [B, L]: which of the others may be remasked. Default: all, so name the prompt's.
        threshold: per row [B], in (0, 1]: remask confidence < threshold (WINO, arXiv:2507.18578). NaN is not below it.
        quota: per row [B]: remask that many of the lowest confidences; ties by position, lowest first; NaN last.
        probability: broadcast to [B, L], in [0, 1]: remask each position with this probability, sigma of ReMDM
            (arXiv:2503.00307), by a uniform number keyed by (seed, row id, step).
        committed: per row [B], see above; `StepStats.committed` fits.
        seed, row_ids, step: as in `denoise_step_`; used by `probability` alone.
        backend: see `use_backend`.

    Returns:
        RevokeStats(remasked int32 [B], revoked bool [B, L]).

    Raises:
        InvalidArgumentError: wrong dtype, shape or device, a number outside its range, `threshold` or `quota` without
            `committed`.
        BackendUnavailableError: the backend asked for cannot run here or has no such kernel.

    >>> tokens = torch.tensor([[7, 3, 9, 5]])
    >>> confidence = torch.tensor([[0.9, 0.2, 0.0, 0.4]])
    >>> revoke_(tokens, confidence, mask_id=9, threshold=0.5, committed=2).remasked
    tensor([1], dtype=torch.int32)
    >>> tokens
    tensor([[7, 9, 9, 5]])
    """
    arguments.tensor("tokens", tokens, (torch.int64,), (None, None))
    arguments.writable("tokens", tokens)
    arguments.tensor("confidence", confidence, SCORE_DTYPES, tokens.shape)
    arguments.same_device("confidence", confidence, tokens)
    if eligible is not None:
        arguments.tensor("eligible", eligible, (torch.bool,), tokens.shape)
        arguments.same_device("eligible", eligible, tokens)
    if committed is None and (threshold is not None or quota is not None):
        raise InvalidArgumentError("committed must be given with threshold or quota, so that the loop ends; got None")
    rows, shape = tokens.shape[:1], tokens.shape
    return RevokeStats(
        *torch.ops.dlm_kernels.revoke_(
            tokens,
            confidence.detach().float(),
            arguments.vocabulary_id("mask_id", mask_id, arguments.MAX_VOCABULARY),
            eligible,
            None
            if threshold is None
            else arguments.floats("threshold", threshold, rows, tokens, above=0.0, at_most=1.0),
            None if quota is None else arguments.integers("quota", quota, rows, tokens, low=0),
            None
            if probability is None
            else arguments.floats("probability", probability, shape, tokens, at_least=0.0, at_most=1.0),
            None if committed is None else arguments.integers("committed", committed, rows, tokens, low=0),
            *arguments.keys(seed, canvas_row_ids(tokens, row_ids), step, shape, tokens),
            arguments.backend_name(backend),
        )
    )
