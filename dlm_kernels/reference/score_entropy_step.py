"""The reverse steps of score-entropy discrete diffusion."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.reference.philox import gumbel_noise
from dlm_kernels.reference.score_tokens import ELEMENTS_AT_ONCE


def score_entropy_step_(
    tokens: Tensor,  # [B, L] int64, written
    log_score: Tensor,  # [B, L, V]
    mask_id: int,  # -1: the uniform graph
    delta_sigma: Tensor,  # [B] fp64
    method: str,
    denoise: bool,
    eligible: Tensor | None,  # [B, L] bool
    seed: Tensor,  # this and the next two [B, L]
    row_ids: Tensor,
    step: Tensor,
) -> Tensor:
    """bool [B, L]: positions that changed."""
    rows, length, vocabulary = log_score.shape
    live = torch.ones_like(tokens, dtype=torch.bool) if mask_id < 0 else tokens == mask_id  # the rest cannot move
    if eligible is not None:
        live &= eligible
    delta_sigma = delta_sigma[:, None].expand(rows, length)
    after = tokens.clone()
    for at in live.nonzero().split(max(1, ELEMENTS_AT_ONCE // vocabulary)):
        i = tuple(at.T)
        x_t, s, delta = tokens[i], log_score[i].double().exp(), delta_sigma[i][:, None]
        if mask_id >= 0:
            weight = absorb(s, mask_id, delta, method, denoise)
        elif method == "euler":
            weight = uniform_euler(s, x_t, delta)
        else:
            weight = uniform_analytic(s, x_t, delta)
        # Sampling by weights normalises them. What an inexact score or a long step made negative has probability 0.
        noised = weight.clamp(min=0).log().float() + gumbel_noise(seed[i], row_ids[i], step[i], vocabulary)
        after[i] = noised.argmax(-1)
    changed = after != tokens
    tokens.copy_(after)
    return changed


def absorb(s: Tensor, mask_id: int, delta: Tensor, method: str, denoise: bool) -> Tensor:
    """A mask becomes y with probability r s(y), r the rate of the step; both methods have this form."""
    mask = torch.full_like(delta, mask_id, dtype=torch.int64)
    weight = (delta if method == "euler" else delta.expm1()) * s.scatter(1, mask, 0)
    if denoise:
        return s.scatter(1, mask, 0)  # the mask's column dropped; only proportions count
    return weight.scatter(1, mask, 1 - weight.sum(-1, keepdim=True))


def uniform_euler(s: Tensor, x_t: Tensor, delta: Tensor) -> Tensor:
    """1{y = x_t} + delta_sigma * reverse rate; x_t jumps to y at the rate s(y) / K."""
    weight = delta / s.shape[1] * s.scatter(1, x_t[:, None], 0)
    return weight.scatter(1, x_t[:, None], 1 - weight.sum(-1, keepdim=True))


def uniform_analytic(s: Tensor, x_t: Tensor, delta: Tensor) -> Tensor:
    """p(x_s = y) / p(x_t) times q(x_t | x_s = y), the former from the score by undoing the noise of the step."""
    vocabulary, here = s.shape[1], x_t[:, None]
    s = s.scatter(1, here, 1)
    e = (-delta).exp()
    staggered = s / e - (1 - e) / (vocabulary * e) * s.sum(-1, keepdim=True)
    transition = ((1 - e) / vocabulary).repeat(1, vocabulary).scatter_add(1, here, e)
    return staggered * transition
