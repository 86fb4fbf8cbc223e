"""What the caches of bidirectional models share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.caches.base import Cache, compute
from dlm_samplers.models.adapter import Adapter
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler


class RefreshedCache(Cache):
    """Makes a row's keys and values anew, by a forward over its whole canvas, when the row enters a block.

    Rows enter blocks when they please: a step runs one forward for those that do and one for the others, and looks at the
    device to tell them apart.
    """

    opens_with_all = True

    def check(self, sampler: Sampler) -> None:
        super().check(sampler)
        name = type(self).__name__
        if sampler.spec.block_length is not None:
            raise InvalidArgumentError(f"{name} is for bidirectional models; use BlockCache, which is exact here")
        if sampler.spec.logit_shift:
            raise InvalidArgumentError(
                f"{name} computes {self.sees} alone, and with shifted outputs the output before a block predicts its first "
                "token; use cache=None"
            )

    def start(self, state: SamplerState) -> None:
        state.memory["cache.block_start"] = torch.full_like(state.block_start, -1)

    @abstractmethod
    def window(self, state: SamplerState) -> tuple[Tensor, Tensor]:
        """(first, end) columns, int64 [B] each, that a forward inside a block computes."""

    def forward(self, adapter: Adapter, state: SamplerState) -> tuple[Tensor, Tensor]:
        fresh = state.memory["cache.block_start"] != state.block_start  # the end may still move, see AdaBlock
        state.memory["cache.block_start"] = state.block_start
        first, end = self.window(state)
        first, end = torch.where(fresh, 0, first), torch.where(fresh, state.length, end)
        if bool((fresh == fresh[:1]).all()):
            return compute(adapter, state, first, end), end - first
        hidden: Tensor | None = None
        for rows in (fresh, ~fresh):
            index = rows.nonzero()[:, 0]
            part = state.take(index)
            states = compute(adapter, part, first[index], end[index])
            if hidden is None:
                hidden = states.new_zeros(len(rows), *states.shape[1:])
            hidden[index] = states
            state.put(index, part)
        assert hidden is not None
        return hidden, end - first
