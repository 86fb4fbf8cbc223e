"""What a model makes of an attention mask, found out by changing a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Attention = Literal["block_causal", "bidirectional", "causal"]


@torch.no_grad()
def attention_of(forward: Callable[[Tensor], Tensor], block_length: int, vocabulary: int) -> Attention:
    """How a canvas of two blocks attends under `forward(tokens int64 [4, 2 block_length]) -> logits [4, 2 block_length, V]`.

    Block-causal: a position sees its own block and what is before it. In blocks of 1 that is causal attention.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (1, 2 * block_length), generator=generator).repeat(4, 1)
    for row, column in ((1, block_length - 1), (2, 2 * block_length - 1)):
        tokens[row, column] = (tokens[row, column] + 1) % vocabulary
    logits = forward(tokens).float()
    # [4, 2 block_length]; the last row repeats the first, so that what it shows is noise.
    change = (logits - logits[0]).abs().nan_to_num(0.0).amax(-1)
    moved = change > 4 * change[3].max() + 1e-6 * logits[0].abs().median()  # not the mean: some tokens have -1e9
    if bool(moved[2, :block_length].any()):
        return "bidirectional"
    inside = block_length == 1 or bool(moved[1, : block_length - 1].any())
    return "block_causal" if inside else "causal"
