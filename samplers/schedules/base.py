"""The interface of a schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from dlm_samplers.state import SamplerState


class Schedule(ABC):
    """Maps a row's place in its block to the number of tokens it commits."""

    @abstractmethod
    def quota(self, state: SamplerState) -> Tensor:
        """int64 [B]: tokens to commit in this step. Reads `block_step`, `block_masks` and `steps_per_block`."""

    def constant(self, state: SamplerState) -> int | None:
        """The quota of every step that finds masks, where it is the same for all rows throughout the call."""
        return None
