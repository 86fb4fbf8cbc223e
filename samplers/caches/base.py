"""The interface of a cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.caches.attention import Window, window_attention
from dlm_samplers.models.adapter import Adapter
from dlm_samplers.parts import Part
from dlm_samplers.remask.base import Remask
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler


class Cache(Part, ABC):
    """Keeps every layer's keys and values of a row's canvas and computes a window of its columns a step.

    They live in the state, so they follow a row through the batch. Keys are kept with their rotary positions in them. The
    width of a window is read back from the device.
    """

    sees: ClassVar[str]
    """What of the canvas the forwards inside a block compute, for error messages."""
    opens_with_all: ClassVar[bool] = False
    """True when the forward that opens a block computes every column."""
    computes_suffix: ClassVar[bool] = False
    """True when the window reaches to the end of the canvas."""

    def check(self, sampler: Sampler) -> None:
        name = type(self).__name__
        if sampler.adapter.lm_head is None:
            raise InvalidArgumentError(
                f"{name} scores hidden states: give spec=ModelSpec(..., hidden='model', lm_head='lm_head')"
            )
        for part in sampler.parts:
            if part.needs_logits:
                raise InvalidArgumentError(
                    f"{name} scores hidden states, and {part} reads logits; leave out cache=, or take a part that reads scores "
                    "alone, as Threshold does"
                )
        if sampler.length is not None:
            raise InvalidArgumentError(
                f"{name} keeps keys by column, and {type(sampler.length).__name__} moves columns; leave one of them out"
            )
        if sampler.remask is not None and type(sampler.remask).companions is not Remask.companions:
            raise InvalidArgumentError(
                f"{name} computes columns of the canvas alone, and {type(sampler.remask).__name__} others beside it; leave one "
                "of them out"
            )
        if any(rule.fills for rule in sampler.stopping) and not self.computes_suffix:
            raise InvalidArgumentError(
                f"{name} computes {self.sees} alone, and a stopping rule that fills the rest reads scores beyond it; "
                "use PrefixCache"
            )
        with window_attention(sampler.adapter.model):
            pass

    @abstractmethod
    def forward(self, adapter: Adapter, state: SamplerState) -> tuple[Tensor, Tensor]:
        """Hidden states [B, L, D], meaningful in the columns computed, and int64 [B]: how many those are."""


def compute(
    adapter: Adapter, state: SamplerState, first: Tensor, end: Tensor, block_length: int | None = None
) -> Tensor:
    """Hidden states [B, L, D] of the columns first .. end - 1 (int64 [B] each); the others' keys and values are the kept ones.

    block_length: of block-causal attention; None: every column sees every other.
    """
    size = end - first
    offset = torch.arange(int(size.max()), device=first.device)
    columns = first[:, None] + torch.minimum(offset, size[:, None] - 1)  # short windows repeat their last column
    visible = state.valid[:, None]
    if block_length is not None:
        visible = visible & (state.column // block_length <= (columns // block_length)[:, :, None])
    window = Window(columns, visible, state.position_memory)
    states = adapter.window(state.tokens.gather(1, columns), columns, window)
    hidden = states.new_zeros(*state.tokens.shape, states.shape[-1])
    return hidden.scatter_(1, columns[:, :, None].expand_as(states), states)
