"""The ancestral step of absorbing-state diffusion, with ReMDM's remasking."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.reference.keyed_uniform import keyed_uniform
from dlm_kernels.reference.philox import ROUTE_STREAM
from dlm_kernels.reference.score_tokens import score_tokens


def absorbing_step_(
    tokens: Tensor,  # [B, L] int64, written
    logits: Tensor,  # [B, L, V]
    mask_id: int,
    alpha_t: Tensor,  # [B] fp64
    alpha_s: Tensor,  # [B] fp64
    sigma: Tensor,  # [B, L] fp64
    temperature: Tensor,  # this and the next five [B, L]
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    suppress_ids: Tensor | None,
    eligible: Tensor | None,  # [B, L] bool
    sampling_confidence: bool,
    top_p_first: bool,
) -> Tensor:
    """bool [B, L]: positions that changed."""
    masked = tokens == mask_id
    u = keyed_uniform(seed, row_ids, step, ROUTE_STREAM)
    jumps = jumping(u, masked, alpha_t, alpha_s, sigma)
    if eligible is not None:
        jumps &= eligible
    filled, remasked = jumps & masked, jumps & ~masked
    token = score_tokens(
        logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids, filled, sampling_confidence, top_p_first
    )[0]
    tokens.copy_(torch.where(filled, token, tokens.masked_fill(remasked, mask_id)))
    return jumps


def jumping(u: Tensor, masked: Tensor, alpha_t: Tensor, alpha_s: Tensor, sigma: Tensor) -> Tensor:
    """bool [B, L]: which masks become tokens and which tokens masks, by uniform numbers u fp32 [B, L]."""
    alpha_t, alpha_s = alpha_t[:, None], alpha_s[:, None]
    # P(x_s is a token | x_t = mask). Nothing is masked at alpha_t = 1; a mask found there all the same is filled.
    unmasks = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
    unmasks = torch.where(alpha_t < 1, unmasks, torch.ones_like(unmasks))
    return u.double() < torch.where(masked, unmasks, sigma)
