"""One reverse step of Gaussian diffusion. See reference/gaussian_step.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cpu.library import check, library, pack, rows
from dlm_kernels.cpu.score_tokens import DTYPES


def gaussian_step_(
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
    eligible: Tensor | None,
    noisy: bool,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
) -> None:
    """x_s = alpha_s D + direction (x_t - alpha_t D) / sigma_t + spread z."""
    levels = (alpha_t, sigma_t, alpha_s, sigma_s, eta, alpha_before, sigma_before)
    per_row = [None if level is None else level.contiguous() for level in levels]
    fields = [
        *(*x.shape, *_vectors(x), *_vectors(denoised), *_vectors(denoised_before)),
        *(0 if level is None else level.data_ptr() for level in per_row),
        *(*rows(eligible), noisy, *rows(seed), *rows(row_ids), *rows(step), torch.get_num_threads()),
    ]
    check(library().dlmk_gaussian_step(pack(fields)))


def _vectors(tensor: Tensor | None) -> tuple[int, ...]:
    """A [B, L, D] argument as `DlmkVectors`: address, dtype and strides; zeros when absent."""
    return (0, 0, 0, 0, 0) if tensor is None else (tensor.data_ptr(), DTYPES[tensor.dtype], *tensor.stride())
