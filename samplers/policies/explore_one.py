"""Explore one: every step also commits a token that the model is unsure of."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dlm_kernels import TokenScores, select_positions
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy
from dlm_samplers.policies.threshold import Threshold
from dlm_samplers.policies.wrapper import Wrapper
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class ExploreOne(Wrapper):
    """What `inner` commits, and of the rest of the block the position of greatest entropy.

    After Explore-Then-Exploit (arXiv:2511.21103): confident tokens carry at most -log(tau) nats each, so a sampler that
    commits only those needs a number of rounds proportional to the text's information; one uncertain token a round carries
    more, and may make its neighbours certain. The paper's own rule, which also decodes across blocks, has no public code to
    match; taking the greatest entropy is ours. Alone such a token is a draw from the model's marginal like any other, but
    it commits beside the others of its step.
    """

    inner: Policy = field(default_factory=Threshold)

    guarantee = Guarantee.APPROXIMATE
    promise = "the added token is the least certain of its step"

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        chosen = self.inner.select(scores, state)
        rest = state.active & self.inner.candidates(state) & ~chosen
        return chosen | select_positions(scores.entropy, rest, quota=1)
