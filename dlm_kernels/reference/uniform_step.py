"""The posterior step of uniform-state diffusion."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.reference.keyed_uniform import keyed_uniform
from dlm_kernels.reference.philox import ROUTE_STREAM, STATE_STREAM, keyed_integer
from dlm_kernels.reference.score_tokens import ELEMENTS_AT_ONCE, sampling_probability, score_tokens


def uniform_step_(
    tokens: Tensor,  # [B, L] int64, written
    logits: Tensor,  # [B, L, V]
    alpha_t: Tensor,  # [B] fp64
    alpha_s: Tensor,  # [B] fp64
    leave_one_out: bool,
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
    """bool [B, L]: positions that changed.

    For a known x_0, K q(x_s | x_t, x_0) is a mixture of three: stay at x_t, take x_0 ("clean"), take any state ("noise"):

        stay   alpha_t K [x_0 = x_t] + alpha_t / alpha_s - alpha_t
        clean  alpha_s - alpha_t
        noise  (1 - alpha_t / alpha_s) (1 - alpha_s)
        sum    alpha_t K [x_0 = x_t] + 1 - alpha_t

    With x_0 drawn from p(x_0 | x_t) that is the whole step. A leave-one-out denoiser p(x_0 | the rest of x_t) has not seen x_t:
    Bayes' rule over x_0 then puts p(x_t) where [x_0 = x_t] stands ("agreement"), and leaves the draw of a clean token as it is.
    """
    vocabulary = logits.shape[-1]
    token = score_tokens(
        logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids, eligible, sampling_confidence, top_p_first
    )[0]
    if leave_one_out:
        agreement = probability_of(tokens, logits, temperature, top_k, top_p, suppress_ids, eligible, top_p_first)
    else:
        agreement = (token == tokens).double()
    u = keyed_uniform(seed, row_ids, step, ROUTE_STREAM)
    state = keyed_integer(seed, row_ids, step, vocabulary, STATE_STREAM)
    takes_noise, takes_clean = routes(u, alpha_t, alpha_s, vocabulary, agreement)
    after = torch.where(takes_noise, state, torch.where(takes_clean, token, tokens))
    if eligible is not None:
        after = torch.where(eligible, after, tokens)
    changed = after != tokens
    tokens.copy_(after)
    return changed


def routes(u: Tensor, alpha_t: Tensor, alpha_s: Tensor, vocabulary: int, agreement: Tensor) -> tuple[Tensor, Tensor]:
    """(noise, clean), bool [B, L]: what each position takes by uniform numbers u fp32 [B, L]; with neither it stays."""
    alpha_t, alpha_s = alpha_t[:, None], alpha_s[:, None]
    ratio = torch.where(alpha_s > 0, alpha_t / alpha_s, torch.ones_like(alpha_s))  # no signal at either time: no change
    noise = (1 - ratio) * (1 - alpha_s)
    clean = alpha_s - alpha_t
    # The rare routes first, where the uniform numbers are finest.
    at = u.double() * (alpha_t * vocabulary * agreement + 1 - alpha_t)
    return at < noise, ~(at < noise) & (at < noise + clean)


def probability_of(
    tokens: Tensor,
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    suppress_ids: Tensor | None,
    eligible: Tensor | None,
    top_p_first: bool,
) -> Tensor:
    """fp64 [B, L]: probability of the tokens that stand there under the sampling distribution; 0 where not eligible."""
    p = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    live = torch.ones_like(tokens, dtype=torch.bool) if eligible is None else eligible
    for at in live.nonzero().split(max(1, ELEMENTS_AT_ONCE // logits.shape[-1])):
        i = tuple(at.T)
        x = logits[i].to(torch.float32)
        if suppress_ids is not None:
            x[:, suppress_ids] = -torch.inf
        p[i] = sampling_probability(x, tokens[i], temperature[i], top_k[i], top_p[i], top_p_first)
    return p
