"""One reverse step of Gaussian (embedding-space) diffusion, from time t to s."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels import library as _operators  # noqa: F401 - defines torch.ops.dlm_kernels
from dlm_kernels.errors import InvalidArgumentError
from dlm_kernels.scoring import canvas_row_ids


def gaussian_step_(
    x: Tensor,
    denoised: Tensor,
    *,
    alpha_t: float | Tensor,
    sigma_t: float | Tensor,
    alpha_s: float | Tensor,
    sigma_s: float | Tensor,
    eta: float | Tensor = 0.0,
    denoised_before: Tensor | None = None,
    alpha_before: float | Tensor | None = None,
    sigma_before: float | Tensor | None = None,
    eligible: Tensor | None = None,
    seed: int | Tensor = 0,
    row_ids: int | Tensor | None = None,
    step: int | Tensor = 0,
    backend: str | None = None,
) -> None:
    """Move x_t = alpha_t x_0 + sigma_t noise to time s, in place, given a prediction of x_0.

    DDIM: x_s = alpha_s x_0 + sqrt(sigma_s^2 - spread^2) (x_t - alpha_t x_0) / sigma_t + spread z, where spread is eta times the
    standard deviation of q(x_s | x_t, x_0). eta = 0 is deterministic (and the first order of DPM-Solver++), eta = 1 ancestral.
    With the three `_before`, the prediction and the time of the step that led to x_t: DPM-Solver++ (2M), of second order;
    where sigma_s = 0 it takes a first-order step, as the second has no meaning there.

    Args:
        x: [B, L, D] fp32, bf16 or fp16, any strides, written. Computed in fp32.
        denoised: [B, L, D] fp32, bf16 or fp16: predicted x_0.
        alpha_t, sigma_t: per row [B], signal >= 0 and noise > 0 of x. Variance-preserving schedules have
            alpha^2 + sigma^2 = 1; others do as well.
        alpha_s, sigma_s: per row [B], >= 0; less noise than at t.
        eta: per row [B], in [0, 1]; 0 with `denoised_before`.
        denoised_before: [B, L, D]: the prediction of the step before.
        alpha_before, sigma_before: per row [B], signal >= 0 and noise > 0 at the time of `denoised_before`.
        eligible: bool [B, L]: positions that move. Default: all. The others are the anchored ones of DiffuSeq.
        seed, row_ids, step: keys of z as in `score_tokens`, used if eta > 0. row_ids: default: b << 32 | l.
        backend: see `use_backend`.

    Raises:
        InvalidArgumentError: wrong dtype, shape or device, a number outside its range, some but not all of the `_before`.
        BackendUnavailableError: the backend asked for cannot run here or has no such kernel.

    DDIM, arXiv:2010.02502; DPM-Solver++, arXiv:2211.01095.

    >>> x = torch.tensor([[[1.0, -1.0]]])
    >>> gaussian_step_(x, torch.tensor([[[0.5, 0.5]]]), alpha_t=0.6, sigma_t=0.8, alpha_s=0.8, sigma_s=0.6)
    >>> x
    tensor([[[ 0.9250, -0.5750]]])
    """
    arguments.tensor("x", x, arguments.LOGIT_DTYPES, (None, None, None))
    arguments.writable("x", x)
    before = (denoised_before, alpha_before, sigma_before)
    if any(value is None for value in before) and any(value is not None for value in before):
        raise InvalidArgumentError(
            "denoised_before, alpha_before and sigma_before must be given together or not at all"
        )
    denoised = _like(x, "denoised", denoised)
    if denoised_before is not None:
        denoised_before = _like(x, "denoised_before", denoised_before)
    if eligible is not None:
        arguments.tensor("eligible", eligible, (torch.bool,), x.shape[:2])
        arguments.same_device("eligible", eligible, x)
    noisy = isinstance(eta, Tensor) or eta != 0
    if noisy and denoised_before is not None:
        raise InvalidArgumentError(f"eta must be 0 with denoised_before, got {eta}")

    def level(name: str, value: Any, **bounds: float) -> Tensor:
        return arguments.floats(name, value, x.shape[:1], x, dtype=torch.float64, **bounds)

    torch.ops.dlm_kernels.gaussian_step_(
        x.detach(),
        denoised,
        level("alpha_t", alpha_t, at_least=0.0),
        level("sigma_t", sigma_t, above=0.0),
        level("alpha_s", alpha_s, at_least=0.0),
        level("sigma_s", sigma_s, at_least=0.0),
        level("eta", eta, at_least=0.0, at_most=1.0),
        denoised_before,
        None if alpha_before is None else level("alpha_before", alpha_before, at_least=0.0),
        None if sigma_before is None else level("sigma_before", sigma_before, above=0.0),
        eligible,
        noisy,
        *arguments.keys(seed, canvas_row_ids(x, row_ids), step, x.shape[:2], x),
        arguments.backend_name(backend),
    )


def _like(x: Tensor, name: str, value: Any) -> Tensor:
    arguments.tensor(name, value, arguments.LOGIT_DTYPES, x.shape)
    arguments.same_device(name, value, x)
    return value.detach()
