"""A threshold on the lead of the likeliest token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy, per_request
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class Margin(Policy):
    """Commit every position whose likeliest token leads the second by tau or more in probability, and at least one.

    The parallel form of the margin order (Kim et al., arXiv:2502.06768; Dream's `topk_margin`, arXiv:2508.15487). A margin of
    tau implies a confidence of tau, and with one strong rival left it asks for (1 + tau) / 2.

    tau: in (0, 1], one number or one per request.

    At temperature > 0 the margin is still that of the two likeliest tokens (Dream: after temperature and filters, so that a
    low temperature lifts every margin), and the drawn token may be neither. Breaks where every position alone is clear but
    the joint is not, as `Threshold` does.
    """

    tau: float | tuple[float, ...] = 0.8

    guarantee = Guarantee.APPROXIMATE
    promise = "a lead in each marginal bounds no joint error"
    keyed_by_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not all(0 < tau <= 1 for tau in per_request(self.tau)):
            raise InvalidArgumentError(f"tau must be in (0, 1], got {self.tau}")

    def preference(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return scores.margin

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return select_positions(scores.margin, state.active, threshold=state.per_request(self.tau))
