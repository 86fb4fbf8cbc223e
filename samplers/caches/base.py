"""The interface of a cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.caches.attention import Window, check_positions, window_attention
from dlm_samplers.models.adapter import Adapter
from dlm_samplers.parts import Part
from dlm_samplers.remask.base import Remask
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler


HIDDEN = "cache.hidden"


class Cache(Part, ABC):
    """Keeps every layer's keys and values of a row's canvas and computes a window of its columns a step.

    They live in the state, so they follow a row through the batch. Keys are kept with their rotary positions in them. How
    many columns each row computes is read back from the device.
    """

    sees: ClassVar[str]
    """What of the canvas the forwards inside a block compute, for error messages."""
    opens_with_all: ClassVar[bool] = False
    """True when the forward that opens a block computes every mask."""
    computes_suffix: ClassVar[bool] = False
    """True when every forward computes every mask, those after the block too."""

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
        with window_attention(sampler.adapter):
            pass
        check_positions(sampler.adapter)

    def check_bidirectional(self, sampler: Sampler) -> None:
        """For caches that a block-causal model has no use for."""
        if sampler.spec.block_length is not None:
            raise InvalidArgumentError(
                f"{type(self).__name__} is for bidirectional models; use BlockCache, which is exact here"
            )

    @abstractmethod
    def columns(self, state: SamplerState) -> Tensor:
        """bool [B, L]: what this forward computes, at least one column a live row. Asked once a forward: it may note in the
        state what it has done."""

    def visible(self, state: SamplerState) -> Tensor:
        """bool [B, L]: the columns that are attended to."""
        return state.valid

    def work(self, columns: Tensor, state: SamplerState) -> Tensor:
        """int64 [B]: how many columns go through the layers, of the columns bool [B, L]."""
        return columns.sum(-1)

    def apart(self, work: Tensor, state: SamplerState) -> Tensor:
        """bool [B]: rows that go in a forward of their own. Here those with at most half the work of the longest."""
        return 2 * work <= work.max()

    def run(self, adapter: Adapter, tokens: Tensor, window: Window, work: Tensor, state: SamplerState) -> Tensor:
        """Hidden states [b, n, D] of tokens [b, n] at the window's columns; work: int64 [b]; state: of all rows."""
        return adapter.window(tokens, window)

    def forward(self, adapter: Adapter, state: SamplerState) -> tuple[Tensor, Tensor]:
        """Hidden states [B, L, D], of each column those last computed, and int64 [B]: how many columns were computed."""
        columns = self.columns(state)
        if adapter.spec.logit_shift:  # the output before a column predicts it
            columns = columns | torch.nn.functional.pad(columns[:, 1:], (0, 1))
        columns = columns & state.valid
        visible = self.visible(state)
        count, work = columns.sum(-1), self.work(columns, state)
        apart = self.apart(work, state)
        alone = apart.nonzero()[:, 0]
        split = 0 < len(alone) < len(count)
        for rows in ((~apart).nonzero()[:, 0], alone) if split else (None,):
            mine = slice(None) if rows is None else rows
            at, seen, full = _window(columns[mine], count[mine], visible[mine], state.column, adapter.spec.block_length)
            window = Window(at, seen, state.position_memory, rows, len(count), state.width, full)
            states = self.run(adapter, state.tokens[mine].gather(1, at), window, work[mine], state)
            window.keep(HIDDEN, states)
        return state.position_memory[HIDDEN], work


def _window(
    columns: Tensor, count: Tensor, visible: Tensor, column: Tensor, block: int | None
) -> tuple[Tensor, Tensor, bool]:
    """The `columns`, `visible` and `full` of a Window. Reads four numbers back from the device, together."""
    width = columns.shape[1]
    ends = [
        count.max(),
        torch.where(columns, column, width).min(),
        torch.where(columns, column, 0).max(),
        torch.where(visible, width, column).min(),
    ]
    most, first, last, unseen = torch.stack(ends).tolist()
    at, seen, full = _ascending(columns, count, most), visible[:, None], width <= unseen
    if block is not None:  # no column attends to what is behind its block
        end = min((last // block + 1) * block, width)
        seen = seen[..., :end] & (column[:end] // block <= (at // block)[..., None])
        full = end <= unseen and first // block == last // block
    return at, seen, full


def _ascending(columns: Tensor, count: Tensor, most: int) -> Tensor:
    """int64 [b, n]: the n = `most` columns of a mask bool [b, L] from left to right; rows with fewer repeat their last."""
    order = (~columns).to(torch.uint8).argsort(dim=-1, stable=True)
    offset = torch.arange(most, device=columns.device)
    return order.gather(1, torch.minimum(offset, count[:, None] - 1).clamp(min=0))
