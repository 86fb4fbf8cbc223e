"""LLaDA's schedule: the block's masks spread evenly over its steps, the remainder first."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dlm_samplers.schedules.base import Schedule
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class Linear(Schedule):
    """`n // S` tokens a step, one more in the first `n % S` steps (LLaDA, arXiv:2502.09992, `get_num_transfer_tokens`).

    n is the number of masks the block held when it was entered, S the steps per block.
    """

    def quota(self, state: SamplerState) -> Tensor:
        n, steps = state.block_masks, state.steps_per_block
        assert steps is not None
        return n // steps + (state.block_step < n % steps)

    def constant(self, state: SamplerState) -> int | None:
        block, steps = state.block_length, state.steps_per_block
        return 1 if block is not None and steps is not None and steps >= block else None
