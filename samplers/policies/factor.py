"""The factor rule: a threshold that rises with the number of tokens committed at once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Outlook, Policy, per_request
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class Factor(Policy):
    """Commit the n best positions, n the largest with (n + 1)(1 - c_n) <= f (Fast-dLLM, arXiv:2505.22618, theorem 1).

    c_n is the n-th highest confidence of the row. At f <= 1 and temperature 0 the tokens committed together are the most
    likely joint assignment, provided the model's marginals come from one consistent joint distribution.

    upstream_quirk: commit the last mask, too, when all others of the block pass and it alone does not. The released code
        (`get_transfer_index_dynamic`) does so: its loop ends at the last index whether it broke off there or not.
    """

    f: float | tuple[float, ...] = 1.0
    upstream_quirk: bool = False

    guarantee = Guarantee.BOUNDED
    promise = "at f <= 1, temperature 0, consistent marginals, what commits together is the likeliest joint assignment"

    def __post_init__(self) -> None:
        if not all(f > 0 for f in per_request(self.f)):
            raise InvalidArgumentError(f"f must be above 0, got {self.f}")
        if self.upstream_quirk:  # the last mask commits whatever its confidence
            object.__setattr__(self, "guarantee", Guarantee.APPROXIMATE)

    def outlook(self, scores: TokenScores, state: SamplerState) -> Outlook:
        return Outlook(scores.confidence, tokens_per_step=None, settled=False)

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        chosen = select_positions(scores.confidence, state.active, factor=state.per_request(self.f))
        if self.upstream_quirk:
            one_left = chosen.sum(-1) == state.remaining - 1
            chosen |= state.active & one_left[:, None]
        return chosen
