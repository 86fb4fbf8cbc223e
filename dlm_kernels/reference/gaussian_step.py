"""One reverse step of Gaussian diffusion: DDIM, ancestral, or DPM-Solver++ (2M)."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.reference.philox import NORMAL_STREAM, keyed_normal


def gaussian_step_(
    x: Tensor,  # [B, L, D], written
    denoised: Tensor,  # [B, L, D]
    alpha_t: Tensor,  # this and the next four [B] fp64
    sigma_t: Tensor,
    alpha_s: Tensor,
    sigma_s: Tensor,
    eta: Tensor,
    denoised_before: Tensor | None,  # [B, L, D]
    alpha_before: Tensor | None,  # [B] fp64
    sigma_before: Tensor | None,  # [B] fp64
    eligible: Tensor | None,  # [B, L] bool
    noisy: bool,  # eta may be positive
    seed: Tensor,  # this and the next two [B, L]
    row_ids: Tensor,
    step: Tensor,
) -> None:
    """x_s = alpha_s D + direction (x_t - alpha_t D) / sigma_t + spread z."""
    after, spread = without_noise(
        x, denoised, alpha_t, sigma_t, alpha_s, sigma_s, eta, denoised_before, alpha_before, sigma_before
    )
    if noisy:
        after = after + per_row(spread) * keyed_normal(seed, row_ids, step, x.shape[2], NORMAL_STREAM)
    write_eligible(x, after, eligible)


def without_noise(
    x: Tensor,
    denoised: Tensor,
    alpha_t: Tensor,
    sigma_t: Tensor,
    alpha_s: Tensor,
    sigma_s: Tensor,
    eta: Tensor,
    denoised_before: Tensor | None,
    alpha_before: Tensor | None,
    sigma_before: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """x_s but for its last term, fp32 [B, L, D], and the spread, fp64 [B]."""
    data = denoised.float()
    if denoised_before is not None:
        assert alpha_before is not None
        assert sigma_before is not None
        # Half a step along the last change of the prediction: D = (1 + 1 / 2r) x_0 - x_0_before / 2r, r = h_before / h.
        h = log_ratio(alpha_s, sigma_s) - log_ratio(alpha_t, sigma_t)
        h_before = log_ratio(alpha_t, sigma_t) - log_ratio(alpha_before, sigma_before)
        half = h / (2 * h_before)
        half = torch.where(half.isfinite(), half, torch.zeros_like(half))  # sigma_s = 0: h is infinite
        data = data + per_row(half) * (data - denoised_before.float())

    # Standard deviation of q(x_s | x_t, x_0), times eta; what is left of sigma_s points along the predicted noise.
    ratio = torch.where(alpha_s > 0, alpha_t / alpha_s, torch.ones_like(alpha_s))
    added = (sigma_t.square() - ratio.square() * sigma_s.square()).clamp(min=0).sqrt()
    spread = eta * sigma_s * added / sigma_t
    direction = (sigma_s.square() - spread.square()).clamp(min=0).sqrt()

    return per_row(direction / sigma_t) * x.float() + per_row(alpha_s - direction * alpha_t / sigma_t) * data, spread


def write_eligible(x: Tensor, after: Tensor, eligible: Tensor | None) -> None:
    after = after.to(x.dtype)
    x.copy_(after if eligible is None else torch.where(eligible[..., None], after, x))


def log_ratio(alpha: Tensor, sigma: Tensor) -> Tensor:
    """lambda = log(alpha / sigma)."""
    return alpha.log() - sigma.log()


def per_row(value: Tensor) -> Tensor:
    """[B] fp64 to [B, 1, 1] fp32."""
    return value.float()[:, None, None]
