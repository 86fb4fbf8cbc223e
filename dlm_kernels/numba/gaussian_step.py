"""One reverse step of Gaussian diffusion: the noise here, the rest is PyTorch's, which a loop would not beat."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dlm_kernels.numba.portable_math import exponential_from_uniform, keyed_words, uniform_from_word
from dlm_kernels.numba.runtime import flat, jit, over_rows
from dlm_kernels.reference.gaussian_step import per_row, without_noise, write_eligible
from dlm_kernels.reference.philox import NORMAL_STREAM

f32, u64 = np.float32, np.uint64
STREAM = u64(NORMAL_STREAM)
TWO, TURN = f32(2), f32(2 * math.pi)


@jit
def normal_rows(begin, end, seed, row_ids, step, out):
    """Box-Muller on pairs of words for pairs of indices."""
    dimension = out.shape[1]
    for r in range(begin, end):
        for block in range((dimension + 3) // 4):
            words = keyed_words(seed[r], row_ids[r], step[r], u64(block), STREAM)
            for pair in range(0, min(4, dimension - 4 * block), 2):
                radius = math.sqrt(TWO * exponential_from_uniform(uniform_from_word(words[pair])))
                angle = uniform_from_word(words[pair + 1]) * TURN
                d = 4 * block + pair
                out[r, d] = radius * math.cos(angle)
                if d + 1 < dimension:
                    out[r, d + 1] = radius * math.sin(angle)


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
    """See the reference."""
    after, spread = without_noise(
        x, denoised, alpha_t, sigma_t, alpha_s, sigma_s, eta, denoised_before, alpha_before, sigma_before
    )
    if noisy and after.numel():
        noise = torch.empty((after.shape[0] * after.shape[1], after.shape[2]))
        # A number costs as much as twenty logits do elsewhere.
        over_rows(normal_rows, len(noise), 20 * noise.numel(), flat(seed), flat(row_ids), flat(step), noise.numpy())
        after += per_row(spread) * noise.view(after.shape)
    write_eligible(x, after, eligible)
