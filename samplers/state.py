"""All that one `generate` call remembers between steps, one row per live request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

PER_POSITION = ("tokens", "editable", "valid", "row_ids", "active")


@dataclass
class SamplerState:
    """The rows still being denoised. B rows, L columns; column 0 is the first prompt token of every row.

    Rows are independent: each has its own block, step counter and random stream, so a row's tokens do not depend on
    which other rows share the batch.
    """

    tokens: Tensor
    """int64 [B, L]: prompt, generated tokens, and `mask_id` where nothing is committed yet."""
    editable: Tensor
    """bool [B, L]: positions that the sampler may fill."""
    valid: Tensor
    """bool [B, L]: False on the padding at the right of a short row."""
    prompt_length: Tensor
    """int64 [B]: column at which the generated region starts."""
    length: Tensor
    """int64 [B]: columns in use, prompt and generated region together."""
    index: Tensor
    """int64 [B]: the row's place in the caller's batch."""
    seed: Tensor
    """int64 [B]."""
    row_ids: Tensor
    """int64 [B, L]: `request_id << 32 | position`, the identity that keys a position's random numbers."""

    mask_id: int
    block_length: int | None
    """Block length in tokens; None: the whole canvas is one block."""
    aligned_blocks: bool
    """True when blocks are counted from the left edge, as a block-causal model has them; else from the end of the prompt."""
    steps_per_block: int | None
    """Steps a block is given by a fixed schedule; None for adaptive policies."""

    step: Tensor
    """int64 [B]: steps the row has taken. A step whose outcome is known without the model costs no forward."""
    block_start: Tensor
    """int64 [B]: column at which the current block starts."""
    block_end: Tensor
    """int64 [B]: columns at or right of this one are closed."""
    block_step: Tensor
    """int64 [B]: steps the row has taken in its current block."""
    block_masks: Tensor
    """int64 [B]: masked positions that the current block held when it was entered."""
    active: Tensor
    """bool [B, L]: positions that may be committed in this step."""
    live: Tensor
    """bool [B]: rows with work left."""
    held: Tensor
    """bool [B]: rows that stay in their block for another forward although nothing in it is masked."""
    spends_all_steps: bool = False
    """True when a block without masks still takes the steps its schedule gives it, for they may make new ones."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """What plug-ins remember of a row, each [B, ...]."""
    position_memory: dict[str, Tensor] = field(default_factory=dict)
    """What plug-ins remember of a position, each [B, L, ...]."""

    @property
    def width(self) -> int:
        """L."""
        return self.tokens.shape[1]

    @property
    def column(self) -> Tensor:
        """int64 [L]: 0, 1, ..."""
        return torch.arange(self.width, device=self.tokens.device)

    @property
    def remaining(self) -> Tensor:
        """int64 [B]: active positions of each row."""
        return self.active.sum(-1)

    @property
    def in_block(self) -> Tensor:
        """bool [B, L]: columns of the row's current block."""
        column = self.column
        return (column >= self.block_start[:, None]) & (column < self.block_end[:, None])

    def masked(self) -> Tensor:
        """bool [B, L]: positions still to be filled, whatever their block."""
        return self.editable & (self.tokens == self.mask_id)

    def per_request(self, value: float | Sequence[float]) -> float | Tensor:
        """A parameter given once, or once per request of the caller's batch: float32 [B] of the rows still here."""
        if isinstance(value, (int, float)):
            return value
        return torch.tensor(value, dtype=torch.float32, device=self.index.device)[self.index]

    def enter_blocks(self) -> None:
        """Moves every row that is done with its block to the next block with work in it; rows without one stop living.

        A block is done when nothing in it is masked and nothing will be, or when a fixed schedule has spent its steps on it
        (a sampler that may commit the mask token itself would otherwise never leave).
        A row that a part `held` stays for another forward.
        """
        masked = self.masked()
        column = self.column
        done = ~(masked & (column < self.block_end[:, None])).any(-1)
        if self.spends_all_steps:
            done &= self.block_masks == 0  # of a block that never was entered
        if self.steps_per_block is not None:
            done |= self.block_step >= self.steps_per_block
        done &= ~self.held
        ahead = masked & (column >= self.block_end[:, None])
        self.live = self.live & (~done | ahead.any(-1))
        enter = done & self.live
        first = ahead.int().argmax(-1)  # the first masked column of the rest
        if self.block_length is None:
            begin, end = torch.zeros_like(self.length), self.length
        else:
            origin = torch.zeros_like(first) if self.aligned_blocks else self.prompt_length
            offset = first - origin
            block = torch.div(offset, self.block_length, rounding_mode="floor")
            begin = origin + block * self.block_length
            end = torch.minimum(begin + self.block_length, self.length)
            end = torch.where(offset < 0, torch.minimum(end, origin), end)
            begin = begin.clamp(min=0)
        self.block_start = torch.where(enter, begin, self.block_start)
        self.block_end = torch.where(enter, end, self.block_end)
        self.block_step = torch.where(enter, 0, self.block_step)
        inside = masked & self.in_block
        self.block_masks = torch.where(enter, inside.sum(-1), self.block_masks)
        self.active = masked & (column < self.block_end[:, None]) & self.live[:, None]

    def take(self, rows: Tensor) -> SamplerState:
        """A state of its own of the rows `rows` (int64 indices, repeats allowed)."""
        return self._map(lambda value: value[rows])

    def put(self, rows: Tensor, part: SamplerState) -> None:
        """Writes back what `take(rows)` gave, distinct rows."""
        self._meet(part)
        self.become(self._map(lambda mine, theirs: mine.index_copy(0, rows, theirs), part))

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but `rows` (int64 indices): the compaction of finished requests."""
        self.become(self.take(rows))

    def join(self, other: SamplerState) -> None:
        """Adds the rows of another state below its own, as wide as the wider of the two."""
        width = max(self.width, other.width)
        mine, theirs = self.resized(width), other.resized(width)
        mine._meet(theirs)
        theirs._meet(mine)
        self.become(mine._map(lambda upper, lower: torch.cat([upper, lower]), theirs))

    def resized(self, width: int) -> SamplerState:
        """The same rows with `width` columns: those at the right dropped, or padding added."""
        if width == self.width:
            return self
        by = width - self.width

        def columns(value: Tensor) -> Tensor:
            flat = value.flatten(2) if value.ndim > 2 else value[:, :, None]
            flat = torch.nn.functional.pad(flat, (0, 0, 0, by))
            return flat.reshape(len(value), width, *value.shape[2:])

        new: dict[str, Any] = {name: columns(getattr(self, name)) for name in PER_POSITION}
        if by > 0:
            new["tokens"][:, -by:] = self.mask_id
            request = self.row_ids[:, :1] >> 32
            new["row_ids"] = (request << 32) | torch.arange(width, device=self.tokens.device)
        memory = {name: columns(value) for name, value in self.position_memory.items()}
        return replace(self, **new, position_memory=memory)

    def _meet(self, other: SamplerState) -> None:
        """Makes room, zero, for what plug-ins remember of the other's positions and not of these."""
        missing = {
            name: value.new_zeros(len(self.tokens), *value.shape[1:])
            for name, value in other.position_memory.items()
            if name not in self.position_memory
        }
        self.position_memory = {**self.position_memory, **missing}

    def shorten(self, length: Tensor) -> None:
        """Gives row b the first `length[b]` of its columns; nothing in the others may be filled yet."""
        kept = self.column < length[:, None]
        self.length, self.valid, self.editable = length, self.valid & kept, self.editable & kept

    def insert_masks(self, column: Tensor, count: Tensor) -> None:
        """Puts `count` [B] more masks right of the mask at `column` [B]; what is right of it moves, with all that is
        remembered of it. A new mask inherits the memory of the one beside it. Reads the new width from the device.

        `row_ids` stay with the columns, so the noise of a token must be keyed by step.
        """
        length = self.length + count
        wide = self.resized(max(self.width, int(length.max()))) if len(length) else self
        at, by = column[:, None], count[:, None]
        source = torch.where(wide.column <= at, wide.column, torch.maximum(wide.column - by, at))

        def moved(value: Tensor) -> Tensor:
            index = source.reshape(source.shape + (1,) * (value.ndim - 2))
            return value.gather(1, index.expand(value.shape))

        for name in PER_POSITION:
            if name != "row_ids":
                setattr(wide, name, moved(getattr(wide, name)))
        wide.position_memory = {name: moved(value) for name, value in wide.position_memory.items()}
        # A block that was cut short by the end of the canvas may now reach further.
        whole = length
        if wide.block_length is not None:
            origin = torch.zeros_like(length) if wide.aligned_blocks else wide.prompt_length
            into = (wide.block_end - origin - 1).clamp(min=0)
            blocks = torch.div(into, wide.block_length, rounding_mode="floor") + 1
            whole = torch.minimum(origin + blocks * wide.block_length, length)
        wide.block_end = torch.where(wide.block_end == self.length, whole, wide.block_end)
        wide.length = length
        self.become(wide)

    def _map(self, function: Any, *others: SamplerState) -> SamplerState:
        """A state whose tensors are `function` of this one's and the others'."""
        new: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                new[entry.name] = function(value, *(getattr(other, entry.name) for other in others))
            elif isinstance(value, dict):
                new[entry.name] = {
                    name: function(item, *(getattr(other, entry.name)[name] for other in others))
                    for name, item in value.items()
                }
        return replace(self, **new)

    def become(self, other: SamplerState) -> None:
        """Takes over the rows of another state, in place."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(other, entry.name))
