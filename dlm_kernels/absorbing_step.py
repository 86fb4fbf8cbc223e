"""One ancestral step of masked (absorbing-state) diffusion, from time t to s."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.errors import InvalidArgumentError
from dlm_kernels.scoring import canvas_row_ids, check_step, normalise
from dlm_kernels.transition import signal_levels


def absorbing_step_(
    tokens: Tensor,
    logits: Tensor,
    *,
    mask_id: int,
    alpha_t: float | Tensor,
    alpha_s: float | Tensor,
    sigma: float | Tensor = 0.0,
    eligible: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    seed: int | Tensor = 0,
    row_ids: int | Tensor | None = None,
    step: int | Tensor = 0,
    suppress_ids: Sequence[int] | Tensor | None = None,
    filter_order: str = "top_k_first",
    backend: str | None = None,
) -> Tensor:
    """Draw x_s from its distribution given x_t = tokens and the denoiser's logits, in place; positions are independent.

    A masked position takes token v with probability p(v) (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t) and stays masked
    with (1 - alpha_s - sigma alpha_t) / (1 - alpha_t); p is the distribution that `score_tokens` draws from. Any other
    position is masked again with probability sigma. Only the logits of positions that leave the mask are read, so with
    sigma = 0 a row in which nothing leaves keeps its tokens, and its next logits if the denoiser is not given the time.

    Args:
        tokens: [B, L] int64, any strides, written.
        logits: [B, L, V]; row i predicts position i.
        mask_id: in [0, V).
        alpha_t, alpha_s: per row [B], probability that a token is not masked at t and at s, 0 <= alpha_t <= alpha_s <= 1.
        sigma: broadcast to [B, L]: 0 for MDLM and RADD; ReMDM's, at most min(1, (1 - alpha_s) / alpha_t). Beyond it the
            probabilities are cut to [0, 1].
        eligible: bool [B, L]: positions that may change. Default: all, so name the prompt's if sigma > 0.
        temperature, top_k, top_p, seed, step, filter_order: as in `score_tokens`. Temperature 0 takes the likeliest token.
        row_ids: default: request b, position l, that is b << 32 | l.
        suppress_ids: default: the mask token alone (SUBS parameterisation).
        backend: see `use_backend`.

    Returns:
        bool [B, L]: positions that changed.

    Raises:
        InvalidArgumentError: wrong dtype, shape or device, a number outside its range, an id outside the vocabulary.
        BackendUnavailableError: the backend asked for cannot run here or has no such kernel.

    MDLM, arXiv:2406.07524; RADD, arXiv:2406.03736; ReMDM, arXiv:2503.00307.

    >>> tokens = torch.full((1, 4), 2)
    >>> logits = torch.tensor([0.0, 9.0, 0.0]).expand(1, 4, 3)
    >>> absorbing_step_(tokens, logits, mask_id=2, alpha_t=0.0, alpha_s=0.5)
    tensor([[False,  True, False,  True]])
    >>> tokens
    tensor([[2, 1, 2, 1]])
    """
    logits = check_step(tokens, logits)
    mask_id = arguments.vocabulary_id("mask_id", mask_id, logits.shape[-1])
    levels = signal_levels(alpha_t, alpha_s, tokens)
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
        confidence="model",
        filter_order=filter_order,
    )
    sigmas = arguments.floats("sigma", sigma, tokens.shape, tokens, at_least=0.0, at_most=1.0, dtype=torch.float64)
    _check_sigma(sigma, alpha_t, alpha_s)
    return torch.ops.dlm_kernels.absorbing_step_(
        tokens,
        logits,
        mask_id,
        *levels,
        sigmas,
        *scoring,
        arguments.backend_name(backend),
    )


def _check_sigma(sigma: float | Tensor, alpha_t: float | Tensor, alpha_s: float | Tensor) -> None:
    """Numbers only. Above the limit, staying masked would have a negative probability."""
    if isinstance(sigma, Tensor) or isinstance(alpha_t, Tensor) or isinstance(alpha_s, Tensor) or not sigma:
        return
    if sigma * alpha_t > (1 - alpha_s) * (1 + 1e-6):  # the limit itself may be rounded up
        raise InvalidArgumentError(
            f"sigma must be at most (1 - alpha_s) / alpha_t = {(1 - alpha_s) / alpha_t}, got {sigma}"
        )
