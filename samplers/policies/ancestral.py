"""Ancestral unmasking: each mask flips independently, whatever the model thinks of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dlm_kernels import TokenScores, keyed_uniform
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy
from dlm_samplers.policies.fixed_quota import ORDER_NOISE_STREAM
from dlm_samplers.schedules import TimeGrid
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class AncestralUnmask(Policy):
    """From t to s every mask commits with probability 1 - s/t, the last step all (MDLM, arXiv:2406.07524; Dream's "origin").

    The draw is keyed by (seed, request, position, step), so a row's draws do not depend on its neighbours.
    """

    schedule: TimeGrid = field(default_factory=TimeGrid)

    guarantee = Guarantee.EXACT
    promise = "the T-step ancestral sampler itself; a step in which no mask of a row flips costs it no forward"
    scheduled: ClassVar[bool] = True
    keyed_by_step: ClassVar[bool] = False
    foresees: ClassVar[bool] = True

    def candidates(self, state: SamplerState) -> Tensor:
        u = keyed_uniform(state.seed[:, None], state.row_ids, state.step[:, None], stream=ORDER_NOISE_STREAM)
        return state.active & (u < self.probability(state)[:, None])

    def probability(self, state: SamplerState) -> Tensor:
        """float32 [B]: with which a mask commits in this step."""
        return self.schedule.transfer_probability(state)

    def noise(self, state: SamplerState) -> Tensor | None:
        # In blocks every block walks the grid anew, and the canvas is at no one level of it.
        return self.schedule.times(state)[0] if state.block_length is None else None

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return self.candidates(state)
