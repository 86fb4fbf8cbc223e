"""Whether a published model makes anything of its attention mask: copies of one class do and others do not."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

from dlm_kernels import InvalidArgumentError
from dlm_samplers.models.describe import has_published_name
from dlm_samplers.models.probe import moved_by_padding

if TYPE_CHECKING:
    from dlm_samplers.models.adapter import Adapter

TOKENS = 8
MOVED = 0.2
"""Padding is seen where half of the positions move beside it by more than this share of the logits' spread: rounding in bf16
moves them by less, and a near tie between experts only some of them."""

_HONOURED: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()
"""Of each model, by the kind of mask."""


def require_honoured_padding(adapter: Adapter) -> None:
    """Raises InvalidArgumentError for a model of a published class that sees padding although its mask hides it.

    LLaDA's class is published both ways, and what a name cannot tell is tried: two forwards of a row of eight tokens, once a
    model. Models of other names are taken to be as they are described. Waits for the device.
    """
    model, kind = adapter.model, adapter.spec.attention_mask
    if kind not in ("2d", "4d_bool") or not isinstance(model, nn.Module):
        return
    known = _HONOURED.setdefault(model, {})
    if kind not in known:
        known[kind] = not has_published_name(model) or _honoured(adapter)
    if not known[kind]:
        raise InvalidArgumentError(
            f"input_ids: the rows have different lengths, and this {type(model).__name__} gives real positions other logits "
            f"beside padding, whatever attention_mask={kind!r} says: its code ignores the mask. Generate rows of one length at "
            "a time, or with a cache, which attends by masks of its own"
        )


@torch.no_grad()
def _honoured(adapter: Adapter) -> bool:
    spec = adapter.spec
    tokens = torch.arange(min(TOKENS + 1, spec.vocab_size or TOKENS + 1), device=adapter.device)
    tokens = tokens[tokens != spec.mask_id][None, :TOKENS]
    alone = adapter.forward(tokens, None)[0].float()
    moved = moved_by_padding(lambda *row: adapter.forward(*row).float(), spec, tokens, alone, "right")
    return bool(moved.median() <= MOVED * alone[alone.isfinite()].std())
