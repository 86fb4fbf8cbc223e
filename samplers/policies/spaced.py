"""A distance between the tokens of a step, over any policy."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy
from dlm_samplers.policies.threshold import Threshold
from dlm_samplers.policies.wrapper import Wrapper
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class Spaced(Wrapper):
    """Of what a policy selects, commit the best and in turn every next best that keeps its distance to those before it; the
    others wait for the next step (the post-filter of the Dilated Unmasking Scheduler, arXiv:2506.19037, sec. 4.4).

    inner: its own preference decides what is best (`Policy.preference`: confidence, margin, entropy).
    distance: g, in tokens, between two tokens of a step while the block is all masks.
    relax: shrink the distance with the share of the block that is still masked, to max(2, floor(M g / B)), as the authors' code
        does; False keeps it.

    B is the number of masks the block was entered with. Subsets keep what the factor rule and the entropy bound promise, so
    such a policy stays bounded. At temperature > 0 the preference reads what the policy reads. The filter takes about
    B / g small operations a step, and B / 2 in the worst case: use it with blocks. Breaks where what is far apart depends on
    each other, as copies do.
    """

    inner: Policy = field(default_factory=Threshold)
    distance: int = 8
    relax: bool = True

    guarantee = Guarantee.APPROXIMATE
    promise = "as bounded as the policy it thins out; distance alone bounds no joint error"

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Policy):
            raise InvalidArgumentError(f"inner must be a Policy instance, got {self.inner!r}")
        if self.inner.scheduled:
            raise InvalidArgumentError(
                f"Spaced lets positions wait, and {self.inner} would run out of its steps; nearest: a policy without a "
                "schedule, such as FixedQuota(tokens_per_step=...)"
            )
        if self.distance < 2:
            raise InvalidArgumentError(f"distance must be at least 2 tokens, got {self.distance}")
        if self.inner.guarantee is Guarantee.BOUNDED:
            object.__setattr__(self, "guarantee", Guarantee.BOUNDED)

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        waiting = self.inner.select(scores, state)
        preference, distance = self.preference(scores, state), self._distance(state.remaining, state.block_masks)
        span = state.width if state.block_length is None else min(state.block_length, state.width)
        chosen = torch.zeros_like(waiting)
        for _ in range(self._most(span)):
            best = preference.masked_fill(~waiting, -torch.inf).argmax(-1, keepdim=True)
            away = (state.column - best).abs()
            chosen |= waiting & (away == 0)
            waiting &= away >= distance[:, None]
        return chosen

    def _distance(self, masks: Tensor, block: Tensor) -> Tensor:
        """int64 [B]: the distance that `masks` of `block` positions still masked ask for."""
        if not self.relax:
            return torch.full_like(masks, self.distance)
        return (masks * self.distance // block.clamp(min=1)).clamp(min=2)

    def _most(self, span: int) -> int:
        """How many tokens at most commit in a step whose masks lie within `span` columns."""
        if not self.relax:
            return -(-span // self.distance)
        return max(min(masks, -(-span // max(2, masks * self.distance // span))) for masks in range(1, span + 1))
