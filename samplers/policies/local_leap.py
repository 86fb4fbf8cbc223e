"""LocalLeap: sure tokens vouch for their neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import max_pool1d

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy, per_request
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class LocalLeap(Policy):
    """Commit every masked position whose confidence reaches tau, and within `radius` of such an anchor those that reach
    tau_low; at least one (LocalLeap, arXiv:2510.07081).

    tau, tau_low: one number or one per request.
    radius: W, in tokens to either side.

    Matches the authors' `get_transfer_index` (threshold 0.9, relaxed_threshold 0.75, radius 4): anchors are masked positions of
    the current block in this step, not tokens committed before. Confidence is that of the drawn token, so at temperature > 0
    an unlikely draw is no anchor. Breaks on what neighbours decide together (the digits of a number, a name): adjacent tokens
    are the most dependent ones, and those are what it commits at once. `Spaced` and `Dilated` bet on the opposite.
    """

    tau: float | tuple[float, ...] = 0.9
    tau_low: float | tuple[float, ...] = 0.75
    radius: int = 4

    guarantee = Guarantee.APPROXIMATE
    promise = "a sure neighbour bounds no joint error"

    def __post_init__(self) -> None:
        for name in ("tau", "tau_low"):
            if not all(0 < tau <= 1 for tau in per_request(getattr(self, name))):
                raise InvalidArgumentError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        if self.radius < 0:
            raise InvalidArgumentError(f"radius must be >= 0 tokens, got {self.radius}")

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        confidence, tau = scores.confidence, state.per_request(self.tau)
        anchors = select_positions(confidence, state.active, threshold=tau, at_least=0)
        reach = max_pool1d(anchors[:, None].float(), 2 * self.radius + 1, stride=1, padding=self.radius)[:, 0] > 0
        low = state.per_request(self.tau_low)
        near = select_positions(confidence, state.active & reach, threshold=low, at_least=0)
        return near | select_positions(confidence, state.active)
