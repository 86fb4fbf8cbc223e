"""The ancestral step of absorbing-state diffusion, with ReMDM's remasking."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.numba.keyed_uniform import keyed_uniform
from dlm_kernels.numba.score_tokens import score_tokens
from dlm_kernels.reference.absorbing_step import jumping
from dlm_kernels.reference.philox import ROUTE_STREAM


def absorbing_step_(
    tokens: Tensor,
    logits: Tensor,
    mask_id: int,
    alpha_t: Tensor,
    alpha_s: Tensor,
    sigma: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    suppress_ids: Tensor | None,
    eligible: Tensor | None,
    sampling_confidence: bool,
    top_p_first: bool,
) -> Tensor:
    """See the reference."""
    masked = tokens == mask_id
    jumps = jumping(keyed_uniform(seed, row_ids, step, ROUTE_STREAM), masked, alpha_t, alpha_s, sigma)
    if eligible is not None:
        jumps &= eligible
    filled, remasked = jumps & masked, jumps & ~masked
    token = score_tokens(
        logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids, filled, sampling_confidence, top_p_first
    )[0]
    tokens.copy_(torch.where(filled, token, tokens.masked_fill(remasked, mask_id)))
    return jumps
