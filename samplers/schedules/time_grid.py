"""Dream's schedule: a grid of noise levels from 1 to eps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_samplers.schedules.base import Schedule
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class TimeGrid(Schedule):
    """From t to s on `linspace(1, eps, steps + 1)` the share `1 - s/t` of the masks left is committed, rounded down;
    the last step commits all (Dream, arXiv:2508.15487, `_sample`).

    eps: the last noise level, in (0, 1).
    """

    eps: float = 1e-3

    def times(self, state: SamplerState) -> tuple[Tensor, Tensor]:
        """float32 [B] each: noise levels t and s that this step leads from and to; the last step leads to 0."""
        steps = state.steps_per_block
        assert steps is not None
        grid = torch.linspace(
            1, self.eps, steps + 1
        )  # fp32 on purpose: the rounding decides the integer quota, as upstream
        grid[-1] = 0
        step = state.block_step.clamp(max=steps - 1)
        grid = grid.to(step.device)
        return grid[step], grid[step + 1]

    def transfer_probability(self, state: SamplerState) -> Tensor:
        """float32 [B]: the share of the remaining masks that this step commits; 1 in the last step."""
        t, s = self.times(state)
        return 1 - s / t

    def quota(self, state: SamplerState) -> Tensor:
        return (state.remaining.float() * self.transfer_probability(state)).long()
