"""One denoising step of a masked diffusion model: score, select and commit in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.results import StepStats
from dlm_kernels.scoring import canvas_row_ids, check_step, normalise
from dlm_kernels.select_positions import check_rules

SCORES = ("confidence", "margin", "neg_entropy", "random")


def denoise_step_(
    tokens: Tensor,
    logits: Tensor,
    *,
    mask_id: int,
    eligible: Tensor | None = None,
    temperature: float | Tensor = 0.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    seed: int | Tensor = 0,
    row_ids: int | Tensor | None = None,
    step: int | Tensor = 0,
    suppress_ids: Sequence[int] | Tensor | None = None,
    confidence: str = "model",
    filter_order: str = "top_k_first",
    score: str = "confidence",
    quota: int | Tensor | None = None,
    threshold: float | Tensor | None = None,
    factor: float | Tensor | None = None,
    entropy_bound: float | Tensor | None = None,
    at_least: int | Tensor = 1,
    strict: bool = False,
    backend: str | None = None,
) -> StepStats:
    """Propose a token for every masked position, choose positions, and write those tokens, in place.

    The same as `score_tokens`, `select_positions` and `commit_` one after the other; see there for their arguments.

    Args:
        tokens: [B, L] int64, any strides, written.
        logits: [B, L, V]; row i predicts position i.
        mask_id: the id that marks an open position, in [0, V).
        eligible: bool [B, L]: which of the masked positions may change. Default: all.
        row_ids: default: request b, position l, that is b << 32 | l.
        suppress_ids: default: the mask token alone, so that every commit fills a position. (): nothing.
        score: what positions are ranked by: "confidence", "margin", "neg_entropy", or "random" (`keyed_uniform`).
        temperature, top_k, top_p, seed, step, confidence, filter_order: as in `score_tokens`.
        quota, threshold, factor, entropy_bound, at_least, strict: as in `select_positions`.
        backend: see `use_backend`.

    Returns:
        StepStats(committed int32 [B], remaining int32 [B], confidence fp32 [B, L], selected bool [B, L]). `remaining` counts
        the eligible positions that were not committed.

    Raises:
        InvalidArgumentError: wrong dtype, shape or device, a number outside its range, an id outside the vocabulary.
        BackendUnavailableError: the backend asked for cannot run here.

    >>> tokens = torch.tensor([[2, 9, 9]])
    >>> logits = torch.zeros(1, 3, 10)
    >>> logits[0, 1, 4], logits[0, 2, 5] = 8.0, 1.0
    >>> stats = denoise_step_(tokens, logits, mask_id=9, threshold=0.9)
    >>> tokens, stats.committed, stats.remaining
    (tensor([[2, 4, 9]]), tensor([1], dtype=torch.int32), tensor([1], dtype=torch.int32))
    """
    logits = check_step(tokens, logits)
    mask_id = arguments.vocabulary_id("mask_id", mask_id, logits.shape[-1])
    scoring = normalise(
        logits,
        tokens.shape,
        canvas_row_ids(tokens, row_ids),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        step=step,
        suppress_ids=(mask_id,) if suppress_ids is None else suppress_ids,
        eligible=eligible,
        confidence=confidence,
        filter_order=filter_order,
    )
    rules = check_rules(
        tokens.shape[0],
        logits,
        quota=quota,
        threshold=threshold,
        factor=factor,
        entropy_bound=entropy_bound,
        at_least=at_least,
        strict=strict,
    )
    return StepStats(
        *torch.ops.dlm_kernels.denoise_step_(
            tokens,
            logits,
            mask_id,
            *scoring,
            arguments.choice("score", score, SCORES),
            *rules,
            arguments.backend_name(backend),
        )
    )
