"""Confidence-aware parallel decoding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Outlook, Policy, per_request
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

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return select_positions(
            scores.confidence, state.active, threshold=state.per_request(self.tau), strict=self.strict
        )
