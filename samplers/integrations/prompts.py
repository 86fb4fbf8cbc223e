"""From padded prompts to rows, and from the sampler's rows to what follows each prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.output import SamplerOutput
from dlm_samplers.sampler import Sampler


def rows_of(input_ids: Any, attention_mask: Tensor | None) -> list[Tensor]:
    """The rows of int64 [B, P] without their padding, which stands on the left or on the right."""
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.dtype != torch.int64:
        got = (
            f"{input_ids.dtype} {list(input_ids.shape)}" if isinstance(input_ids, Tensor) else type(input_ids).__name__
        )
        raise InvalidArgumentError(f"input_ids must be an int64 tensor [B, P], got {got}")
    if attention_mask is None:
        return list(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise InvalidArgumentError(
            f"attention_mask must have input_ids' shape {list(input_ids.shape)}, got {list(attention_mask.shape)}"
        )
    given = attention_mask.bool()
    if bool((given.int().diff(dim=-1).ne(0).sum(-1) > 1).any()):
        raise InvalidArgumentError("attention_mask has padding in the middle of a row; pad on one side")
    return [row[real] for row, real in zip(input_ids, given, strict=True)]


def continuations(
    sampler: Sampler, rows: list[Tensor], new_tokens: int, **settings: Any
) -> tuple[Tensor, SamplerOutput]:
    """(int64 [B, new_tokens] that follow each prompt, all there is).

    Where attention is block-causal the last block is generated whole and then cut, as the models' own code does.
    """
    length = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    budget = torch.full_like(length, new_tokens)
    if (block := sampler.spec.block_length) is not None:
        budget = (length + new_tokens + block - 1) // block * block - length
    output = sampler.generate(rows, max_new_tokens=budget, **settings)
    column = length[:, None] + torch.arange(new_tokens)
    return output.sequences.gather(1, column.to(output.sequences.device)), output
