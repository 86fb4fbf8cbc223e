"""Which positions commit this step."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def select_positions(
    score: Tensor,  # [B, L] fp32
    eligible: Tensor,  # [B, L] bool
    quota: Tensor | None,  # [B] int64
    threshold: Tensor | None,  # [B] fp32
    factor: Tensor | None,  # [B] fp32
    entropy_bound: Tensor | None,  # [B] fp32
    entropy: Tensor | None,  # [B, L] fp32
    at_least: Tensor,  # [B] int64
    strict: bool,
) -> Tensor:
    """bool [B, L]: the union of what the rules choose and the `at_least` best, within `eligible`."""
    order = rank_order(score, eligible)
    rank = order.argsort(-1)
    chosen = rank < at_least[:, None]
    if quota is not None:
        chosen |= rank < quota[:, None]
    if threshold is not None:
        chosen |= score > threshold[:, None] if strict else score >= threshold[:, None]
    if factor is not None:
        # (n + 1)(1 - c_n) <= f, solved for c_n; n counts from 1 (Fast-dLLM, arXiv:2505.22618, theorem 1).
        n = torch.arange(1, score.shape[1] + 1, dtype=torch.float32, device=score.device)
        bound = 1 - factor[:, None] / (n + 1)
        passes = (score.gather(1, order) >= bound) & eligible.gather(1, order)
        chosen |= rank < prefix_length(passes)[:, None]
    if entropy_bound is not None:
        assert entropy is not None
        # Sum of the k least entropies without the greatest of them (EB-Sampler, arXiv:2505.24857).
        order = rank_order(-entropy, eligible)
        h = entropy.gather(1, order).double()
        passes = (h.cumsum(-1) - h <= entropy_bound[:, None].double()) & eligible.gather(1, order)
        chosen |= order.argsort(-1) < prefix_length(passes)[:, None]
    return chosen & eligible


def rank_order(score: Tensor, eligible: Tensor) -> Tensor:
    """Positions [B, L] from best to worst: eligible before the rest, then score, then position. NaN counts as -inf."""
    clean = torch.where(score.isnan(), -math.inf, score) + 0.0  # -0.0 + 0.0 is 0.0
    by_score = clean.argsort(dim=-1, descending=True, stable=True)
    return by_score.gather(1, eligible.gather(1, by_score).int().argsort(dim=-1, descending=True, stable=True))


def prefix_length(passes: Tensor) -> Tensor:
    """The largest n such that the n-th in order passes, [B]; 0 if none does."""
    n = torch.arange(1, passes.shape[1] + 1, device=passes.device)
    return (passes * n).amax(-1) if passes.shape[1] else n.new_zeros(passes.shape[0])
