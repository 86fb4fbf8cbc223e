"""From the caller's prompts to canvases and back: padding, blanks, seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.models import ModelSpec
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class Prompts:
    """The caller's prompts, each row moved to the left edge."""

    tokens: Tensor
    """int64 [B, P]: row b holds its prompt in columns 0 .. length[b] - 1."""
    editable: Tensor
    """bool [B, P]: blanks inside the prompt."""
    length: Tensor
    """int64 [B]."""
    left_padded: bool
    """True when the caller's padding was on the left; the output is padded the same way."""
    width: int
    """Columns of the caller's prompts, padding included."""
    pad_id: int
    """The caller's padding token; without padding the end-of-text or, failing that, the mask token."""


def read_prompts(
    input_ids: Tensor | Sequence[Any],
    attention_mask: Tensor | None,
    editable: Any,
    spec: ModelSpec,
    device: torch.device,
) -> Prompts:
    """Checks the prompts and strips their padding.

    Raises InvalidArgumentError for a wrong dtype, rank or shape, padding in the middle, ids outside the vocabulary.
    """
    if isinstance(input_ids, Tensor):
        if input_ids.ndim != 2 or input_ids.dtype != torch.int64:
            raise InvalidArgumentError(
                "input_ids must be an int64 tensor [B, P] or a list of 1-D sequences, "
                f"got {input_ids.dtype} of shape {list(input_ids.shape)}"
            )
        tokens = input_ids.to(device)
        if attention_mask is None:
            valid = torch.ones_like(tokens, dtype=torch.bool)
        else:
            valid = _bool_like("attention_mask", attention_mask, tokens)
        blanks = tokens == spec.mask_id if editable is None else _bool_like("editable", editable, tokens)
    else:
        if attention_mask is not None:
            raise InvalidArgumentError("attention_mask goes with a tensor input_ids; a list of prompts has no padding")
        rows = [_row(row, number) for number, row in enumerate(input_ids)]
        tokens = _stack(rows, spec.mask_id).to(device)
        valid = _stack([torch.ones_like(row, dtype=torch.bool) for row in rows], False).to(device)
        if editable is None:
            blanks = tokens == spec.mask_id
        else:
            marks = [torch.as_tensor(mark) for mark in editable]
            if [mark.shape for mark in marks] != [row.shape for row in rows] or any(
                m.dtype != torch.bool for m in marks
            ):
                raise InvalidArgumentError(
                    "editable must hold one 1-D bool sequence per prompt, of the prompt's length"
                )
            blanks = _stack(marks, False).to(device)

    length = valid.sum(-1)
    width = tokens.shape[1]
    start = valid.int().argmax(-1) if width else torch.zeros_like(length)
    column = torch.arange(width, device=device)
    block = (column >= start[:, None]) & (column < (start + length)[:, None])
    torn = (block != valid).any(-1)
    if torn.any():
        raise InvalidArgumentError(
            f"attention_mask has padding in the middle of row {int(torn.int().argmax())}; pad on the left or on the right"
        )
    padding = tokens[~valid]
    pad_id = int(padding[0]) if padding.numel() and isinstance(input_ids, Tensor) else spec.fill_id
    shift = (column + start[:, None]).clamp(max=max(width - 1, 0))
    tokens, blanks, valid = (x.gather(1, shift) if width else x for x in (tokens, blanks, valid))
    valid = column < length[:, None]
    blanks = blanks & valid
    given = valid & ~blanks
    check_vocabulary(tokens, given, spec.vocab_size)
    padded_left = bool(((start > 0) & (length > 0)).any())
    padded_right = bool(((start + length < width) & (length > 0)).any()) and isinstance(input_ids, Tensor)
    if padded_left and padded_right:
        raise InvalidArgumentError("attention_mask pads some rows on the left and some on the right; use one side")
    longest = int(length.max()) if length.numel() else 0
    return Prompts(tokens[:, :longest], blanks[:, :longest], length, padded_left, width, pad_id)


def check_vocabulary(tokens: Tensor, given: Tensor, vocab_size: int | None) -> None:
    """Raises InvalidArgumentError when a given token is outside [0, vocab_size)."""
    wrong = given & (tokens < 0)
    if vocab_size is not None:
        wrong |= given & (tokens >= vocab_size)
    if wrong.any():
        row, column = (int(i) for i in wrong.nonzero()[0])
        allowed = "0 or more" if vocab_size is None else f"in [0, {vocab_size})"
        raise InvalidArgumentError(
            f"input_ids[{row}, {column}] = {int(tokens[row, column])} is outside the vocabulary; ids must be {allowed}"
        )


def new_state(
    prompts: Prompts,
    spec: ModelSpec,
    *,
    max_new_tokens: Tensor,
    block_length: int | None,
    steps_per_block: int | None,
    seed: Tensor,
    request_ids: Tensor,
) -> SamplerState:
    """Lays every row out as [prompt | masks | padding on the right].

    The generated region follows the row's own prompt, so its columns, and with them rotary or learned positions, are
    those of the row without any padding.
    """
    device = prompts.tokens.device
    rows = prompts.tokens.shape[0]
    length = prompts.length + max_new_tokens
    width = max(int(length.max()), 1) if rows else 1
    column = torch.arange(width, device=device)
    tokens = torch.full((rows, width), spec.mask_id, dtype=torch.int64, device=device)
    tokens[:, : prompts.tokens.shape[1]] = prompts.tokens[:, :width]
    valid = column < length[:, None]
    editable = (column >= prompts.length[:, None]) & valid
    editable[:, : prompts.editable.shape[1]] |= prompts.editable[:, :width]
    tokens = tokens.masked_fill(editable | ~valid, spec.mask_id)

    def zero() -> Tensor:
        return torch.zeros(rows, dtype=torch.int64, device=device)

    return SamplerState(
        tokens=tokens,
        editable=editable,
        valid=valid,
        prompt_length=prompts.length,
        length=length,
        index=torch.arange(rows, device=device),
        seed=seed,
        row_ids=(request_ids[:, None] << 32) | column,
        mask_id=spec.mask_id,
        block_length=block_length,
        aligned_blocks=spec.block_length is not None,
        steps_per_block=steps_per_block,
        step=zero(),
        block_start=zero(),
        block_end=zero(),
        block_step=zero(),
        block_masks=zero(),
        active=torch.zeros_like(editable),
        live=torch.ones(rows, dtype=torch.bool, device=device),
        held=torch.zeros(rows, dtype=torch.bool, device=device),
    )


def to_caller_layout(tokens: Tensor, length: Tensor, prompts: Prompts) -> Tensor:
    """Canvases [B, L], padded on the right, as the caller pads: same side, same token, no column fewer than it had."""
    width = prompts.width + (int((length - prompts.length).max()) if length.numel() else 0)
    tokens = torch.nn.functional.pad(tokens, (0, width - tokens.shape[1]))  # drops columns when there are too many
    column = torch.arange(width, device=tokens.device)
    tokens = tokens.masked_fill(column >= length[:, None], prompts.pad_id)
    if not prompts.left_padded:
        return tokens
    return tokens.gather(1, (column - (width - length)[:, None]) % max(width, 1))


def _bool_like(name: str, mask: Any, tokens: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape:
        got = f"shape {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise InvalidArgumentError(f"{name} must be a tensor of input_ids' shape {list(tokens.shape)}, got {got}")
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise InvalidArgumentError(f"{name} must hold only 0 and 1")
    return mask.to(device=tokens.device, dtype=torch.bool)


def _row(row: Any, number: int) -> Tensor:
    try:
        tokens = torch.as_tensor(row)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(f"input_ids[{number}] is not a sequence of token ids: {error}") from error
    if tokens.numel() == 0:
        tokens = tokens.reshape(-1).long()
    if tokens.ndim != 1 or tokens.dtype != torch.int64:
        raise InvalidArgumentError(
            f"input_ids[{number}] must be 1-D integer token ids, got {tokens.dtype} of shape {list(tokens.shape)}"
        )
    return tokens


def _stack(rows: list[Tensor], fill: Any) -> Tensor:
    if not rows:
        return torch.zeros(0, 0, dtype=torch.bool if isinstance(fill, bool) else torch.int64)
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
