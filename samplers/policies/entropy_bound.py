"""EB-Sampler: a budget of entropy a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

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

    statistics: of which distribution the entropies are. "sampling": the tempered and filtered one that tokens are drawn
        from (diffusers' EntropyBoundScheduler, which scales the logits first). "model": the model's own, at temperature 1
        (the implementations in PC-Sampler and InfoGain); above temperature 1 it underestimates what is sampled, and the
        bound is lost. None: what the sampler family measures, "model" for LLaDA, "sampling" for Dream.
    """

    gamma: float | tuple[float, ...] = 0.1
    statistics: Literal["model", "sampling"] | None = None

    guarantee = Guarantee.BOUNDED
    promise = "a step's divergence from the joint is at most gamma nats, if the marginals are consistent"
    keyed_by_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not all(gamma >= 0 for gamma in per_request(self.gamma)):
            raise InvalidArgumentError(f"gamma must be >= 0 nats, got {self.gamma}")
        if self.statistics not in (None, "model", "sampling"):
            raise InvalidArgumentError(f"statistics must be 'model', 'sampling' or None, got {self.statistics!r}")

    def preference(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return -scores.entropy

    def outlook(self, scores: TokenScores, state: SamplerState) -> Outlook:
        return Outlook(-scores.entropy, tokens_per_step=None, settled=False)

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        bound = state.per_request(self.gamma)
        return select_positions(
            self.preference(scores, state), state.active, entropy_bound=bound, entropy=scores.entropy
        )
