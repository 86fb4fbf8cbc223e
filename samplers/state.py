"""All that one `generate` call remembers between steps, one row per live request."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


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
    """Block length in tokens, counted from the end of the prompt; None: the whole canvas is one block."""
    steps_per_block: int | None
    """Forwards a block is given by a fixed schedule; None for adaptive policies."""

    step: Tensor
    """int64 [B]: forwards the row has had."""
    block_end: Tensor
    """int64 [B]: columns at or right of this one are closed."""
    block_step: Tensor
    """int64 [B]: forwards the row has had in its current block."""
    block_masks: Tensor
    """int64 [B]: masked positions that the current block held when it was entered."""
    active: Tensor
    """bool [B, L]: positions that may be committed in this step."""
    live: Tensor
    """bool [B]: rows with work left."""

    @property
    def remaining(self) -> Tensor:
        """int64 [B]: active positions of each row."""
        return self.active.sum(-1)

    def masked(self) -> Tensor:
        """bool [B, L]: positions still to be filled, whatever their block."""
        return self.editable & (self.tokens == self.mask_id)

    def enter_blocks(self) -> None:
        """Moves every row that is done with its block to the next block with work in it; rows without one stop living.

        A block is done when nothing in it is masked, or when a fixed schedule has spent its steps on it (a sampler that
        may commit the mask token itself would otherwise never leave).
        """
        masked = self.masked()
        column = torch.arange(masked.shape[1], device=masked.device)
        done = ~(masked & (column < self.block_end[:, None])).any(-1)
        if self.steps_per_block is not None:
            done |= self.block_step >= self.steps_per_block
        ahead = masked & (column >= self.block_end[:, None])
        self.live &= ~done | ahead.any(-1)
        enter = done & self.live
        first = ahead.int().argmax(-1)  # the first masked column of the rest
        if self.block_length is None:
            end = self.length
        else:
            offset = first - self.prompt_length
            block = torch.div(offset, self.block_length, rounding_mode="floor")
            end = torch.minimum(self.prompt_length + (block + 1) * self.block_length, self.length)
            end = torch.where(offset < 0, torch.minimum(end, self.prompt_length), end)
        begin = self.block_end
        self.block_end = torch.where(enter, end, self.block_end)
        self.block_step = torch.where(enter, 0, self.block_step)
        inside = masked & (column < self.block_end[:, None]) & (column >= begin[:, None])
        self.block_masks = torch.where(enter, inside.sum(-1), self.block_masks)
        self.active = masked & (column < self.block_end[:, None]) & self.live[:, None]

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but `rows` (int64 indices): the compaction of finished requests."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                setattr(self, field.name, value[rows])
