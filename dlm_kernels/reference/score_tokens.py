"""Which token each row of logits proposes, and how sure it is. fp64 for the statistics, portable fp32 for the choice."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dlm_kernels.reference import portable_math
from dlm_kernels.reference.philox import gumbel_noise

ELEMENTS_AT_ONCE = 2**21  # bounds the fp64 temporaries to some tens of megabytes
MASS_SCALE = 2.0**36  # 2^26 tokens of mass up to 2^36 still sum within int64


def score_tokens(
    logits: Tensor,  # [B, L, V] fp32, bf16 or fp16
    temperature: Tensor,  # this and the next five [B, L]
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    suppress_ids: Tensor | None,  # [S]
    eligible: Tensor | None,  # [B, L] bool
    sampling_confidence: bool,
    top_p_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(token, confidence, margin, entropy, logsumexp), each [B, L]. Rows that are not eligible are not read."""
    rows, length, vocabulary = logits.shape
    token = logits.new_zeros((rows, length), dtype=torch.int64)
    confidence = logits.new_zeros((rows, length), dtype=torch.float32)
    margin, entropy = torch.zeros_like(confidence), torch.zeros_like(confidence)
    logsumexp = torch.full_like(confidence, -math.inf)

    if eligible is None:
        eligible = torch.ones_like(confidence, dtype=torch.bool)
    for at in eligible.nonzero().split(max(1, ELEMENTS_AT_ONCE // vocabulary)):
        i = tuple(at.T)
        x = logits[i].to(torch.float32)  # [R, V], a copy
        if suppress_ids is not None:
            x[:, suppress_ids] = -math.inf
        results = score_rows(
            x, temperature[i], top_k[i], top_p[i], seed[i], row_ids[i], step[i], sampling_confidence, top_p_first
        )
        for output, result in zip((token, confidence, margin, entropy, logsumexp), results, strict=True):
            output[i] = result.to(output.dtype)
    return token, confidence, margin, entropy, logsumexp


def score_rows(
    x: Tensor,  # [R, V] fp32, suppressed entries -inf
    temperature: Tensor,  # this and the next five [R]
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    sampling_confidence: bool,
    top_p_first: bool,
) -> tuple[Tensor, ...]:
    highest = x.amax(-1)  # NaN if there is one
    ordinary = highest.isfinite()
    m = torch.where(ordinary, highest, torch.zeros_like(highest))[:, None]
    sampled = temperature > 0
    t = torch.where(sampled, temperature, torch.ones_like(temperature))[:, None]
    scaled = (x - m) / t

    kept = filter_tokens(x, scaled, top_k, top_p, top_p_first)

    # torch.argmax: the lowest index among equals, and NaN above everything.
    token = x.argmax(-1)
    draws = sampled & ordinary
    if draws.any():
        noise = gumbel_noise(seed[draws], row_ids[draws], step[draws], x.shape[1])
        noised = scaled[draws] + noise
        token[draws] = noised.masked_fill(~kept[draws], -math.inf).argmax(-1)

    if sampling_confidence:
        t64 = t.double()
        y = ((x.double() - m) / t64).masked_fill(~kept, -math.inf)
    else:
        t64 = torch.ones_like(t, dtype=torch.float64)
        y = x.double() - m
    confidence, margin, entropy, logsumexp = statistics(y, token)
    logsumexp = logsumexp + (m / t64)[:, 0]

    # Rows without a finite maximum.
    infinite = (x == math.inf).sum(-1).double()
    special_cases: tuple[tuple[Tensor, tuple[Any, ...]], ...] = (
        (infinite > 0, (1 / infinite, (infinite == 1).double(), infinite.log(), math.inf)),
        (highest == -math.inf, (0.0, 0.0, 0.0, -math.inf)),
        (highest.isnan(), (math.nan, math.nan, math.nan, math.nan)),
    )
    for case, values in special_cases:
        current = (confidence, margin, entropy, logsumexp)
        confidence, margin, entropy, logsumexp = (torch.where(case, v, c) for v, c in zip(values, current, strict=True))
    return token, confidence, margin, entropy, logsumexp


def sampling_probability(
    x: Tensor,  # [R, V] fp32
    token: Tensor,  # [R] int64
    temperature: Tensor,  # this and the next two [R]
    top_k: Tensor,
    top_p: Tensor,
    top_p_first: bool,
) -> Tensor:
    """Probability, fp64 [R], with which `score_rows` draws this token; 1 or 0 at temperature 0."""
    m = x.amax(-1, keepdim=True)
    t = torch.where(temperature > 0, temperature, torch.ones_like(temperature))[:, None]
    kept = filter_tokens(x, (x - m) / t, top_k, top_p, top_p_first)
    y = ((x.double() - m) / t.double()).masked_fill(~kept, -math.inf)
    p = y.softmax(-1).gather(1, token[:, None])[:, 0]
    return torch.where(temperature > 0, p, (x.argmax(-1) == token).double())


def filter_tokens(x: Tensor, scaled: Tensor, top_k: Tensor, top_p: Tensor, top_p_first: bool) -> Tensor:
    """Which tokens top-k and top-p leave, bool [R, V].

    Both keep whole groups of equal logits, so what they keep is "everything from some value up" and does not depend on how a
    sort orders ties. top-k keeps what is at least the k-th largest value (transformers). top-p keeps a token while the mass
    strictly above it is below p of the total: the smallest set that reaches p, "inclusive nucleus" (transformers). The mass
    is summed in integers, so that no order of summation can move the boundary.
    """
    vocabulary = x.shape[1]
    uses_k = (top_k > 0) & (top_k < vocabulary)
    uses_p = ~(top_p >= 1)
    kept = torch.ones_like(x, dtype=torch.bool)
    if not (uses_k.any() or uses_p.any()):
        return kept

    ordered, order = x.sort(dim=-1, descending=True)
    kth = ordered.gather(1, (top_k.clamp(1, vocabulary) - 1)[:, None])
    in_top_k = (x >= kth) | ~uses_k[:, None]

    mass = (portable_math.exp(scaled) * MASS_SCALE).to(torch.int64)
    if not top_p_first:
        mass = mass.masked_fill(~in_top_k, 0)
    total = mass.sum(-1, keepdim=True)
    before = mass.gather(1, order).cumsum(-1) - mass.gather(1, order)  # mass of everything ahead in the sort
    starts = torch.ones_like(kept)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    before = before.masked_fill(~starts, 0).cummax(-1).values  # equals see the mass ahead of their group
    above = torch.empty_like(mass).scatter_(1, order, before)
    in_top_p = above.double() < top_p.double()[:, None] * total.double()
    in_top_p |= (x == ordered[:, :1]) | ~uses_p[:, None]
    return in_top_k & in_top_p


def statistics(y: Tensor, token: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(probability of `token`, highest - second probability, entropy, logsumexp) of logits y [R, V] with maximum 0."""
    e = y.exp()
    total = e.sum(-1)
    confidence = e.gather(1, token[:, None])[:, 0] / total
    second = e.topk(2).values[:, 1] if y.shape[1] > 1 else torch.zeros_like(total)
    entropy = total.log() - (e * y.masked_fill(e == 0, 0)).sum(-1) / total
    return confidence, (1 - second) / total, entropy, total.log()
