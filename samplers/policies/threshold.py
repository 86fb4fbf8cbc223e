"""Confidence-aware parallel decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Outlook, Policy, gap, per_request
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class Threshold(Policy):
    """Commit every position whose confidence reaches tau, and at least one (Fast-dLLM, arXiv:2505.22618, sec. 3.3).

    tau: in (0, 1], one number or one per request.
    strict: compare with > (LLaDA2) instead of >=.
    """

    tau: float | tuple[float, ...] = 0.9
    strict: bool = False

    guarantee = Guarantee.APPROXIMATE
    promise = "a fixed threshold bounds no joint error once more than tau / (1 - tau) tokens commit together"

    def __post_init__(self) -> None:
        if not all(0 < tau <= 1 for tau in per_request(self.tau)):
            raise InvalidArgumentError(f"tau must be in (0, 1], got {self.tau}")

    def outlook(self, scores: TokenScores, state: SamplerState) -> Outlook:
        return Outlook(scores.confidence, tokens_per_step=None, settled=False)

    def leeway(self, scores: TokenScores, chosen: Tensor, state: SamplerState) -> Tensor:
        tau = torch.as_tensor(state.per_request(self.tau), device=chosen.device).view(-1, 1)
        distance = (scores.confidence - tau).abs().masked_fill(~state.active, torch.inf).amin(-1)
        # Where none reaches tau, the best one commits: it has to stay the best.
        reached = ((scores.confidence >= tau) & state.active).any(-1)
        best = gap(scores.confidence, chosen, state.active & ~chosen)
        return torch.where(reached, distance, torch.minimum(distance, best))

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return select_positions(
            scores.confidence, state.active, threshold=state.per_request(self.tau), strict=self.strict
        )
