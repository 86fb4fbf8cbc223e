"""What the caches of bidirectional models share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_samplers.caches.base import Cache
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler


class RefreshedCache(Cache):
    """Makes a row's keys and values anew, by a forward over its whole canvas, when the row enters a block."""

    opens_with_all = True

    def check(self, sampler: Sampler) -> None:
        super().check(sampler)
        self.check_bidirectional(sampler)

    def start(self, state: SamplerState) -> None:
        state.memory["cache.block_start"] = torch.full_like(state.block_start, -1)

    @abstractmethod
    def window(self, state: SamplerState) -> Tensor:
        """bool [B, L]: what a forward inside a block computes."""

    def columns(self, state: SamplerState) -> Tensor:
        fresh = state.memory["cache.block_start"] != state.block_start  # the end may still move, see AdaBlock
        state.memory["cache.block_start"] = state.block_start
        return self.window(state) | fresh[:, None]
