"""EB-Sampler: a budget of entropy a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Outlook, Policy, per_request
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class EntropyBound(Policy):
    """Commit the k positions of least entropy, k the largest whose entropies without the greatest sum to gamma or less
    (EB-Sampler, arXiv:2505.24857).

    The sum bounds the total correlation of the committed set, so the divergence between the joint distribution and the
    product that is sampled from is at most gamma nats a step, provided the marginals come from one consistent joint.
    """

    gamma: float | tuple[float, ...] = 0.1

    guarantee = Guarantee.BOUNDED
    promise = "a step's divergence from the joint is at most gamma nats, if the marginals are consistent"
    keyed_by_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not all(gamma >= 0 for gamma in per_request(self.gamma)):
            raise InvalidArgumentError(f"gamma must be >= 0 nats, got {self.gamma}")

    def preference(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return -scores.entropy

    def outlook(self, scores: TokenScores, state: SamplerState) -> Outlook:
        return Outlook(-scores.entropy, tokens_per_step=None, settled=False)

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        bound = state.per_request(self.gamma)
        return select_positions(
            self.preference(scores, state), state.active, entropy_bound=bound, entropy=scores.entropy
        )
