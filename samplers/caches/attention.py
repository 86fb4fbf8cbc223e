"""Attention of a window of queries over kept keys and values, through transformers' attention interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError

NAME = "dlm_kernels_window"


@dataclass(frozen=True)
class Window:
    """The columns a forward computes and the store that its attention reads. Passed along the model's keyword arguments."""

    columns: Tensor
    """int64 [B, n]: where the inputs stand. A column may be repeated, with the same token."""
    visible: Tensor
    """bool [B, n or 1, L]: the columns that each input attends to."""
    store: dict[str, Tensor]
    """"cache.<layer>.key" and ".value" [B, L, H, D]: keys with their rotary positions in them; written in place."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """[B, n, H, D] from query [B, H, n, D], key and value [B, H of keys, n, D]; these replace the stored ones."""
        kept = []
        for name, new in (("key", key), ("value", value)):
            new = new.transpose(1, 2)
            place = f"cache.{layer}.{name}"
            if place not in self.store:
                self.store[place] = new.new_zeros(len(new), self.visible.shape[-1], *new.shape[2:])
            stored = self.store[place]
            stored.scatter_(1, self.columns[:, :, None, None].expand_as(new), new)
            kept.append(stored.transpose(1, 2))
        out = torch.nn.functional.scaled_dot_product_attention(
            query,
            kept[0],
            kept[1],
            attn_mask=self.visible[:, None],
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.transpose(1, 2)


def _window_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dlm_window: Window | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if dlm_window is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return dlm_window.attend(module.layer_idx, query, key, value, scaling), None


@contextmanager
def window_attention(model: Any) -> Iterator[None]:
    """While it lasts, `model(..., dlm_window=Window(...))` computes a window; the model is as it was afterwards.

    Raises InvalidArgumentError for a model that does not attend through transformers' attention interface.
    """
    supported = getattr(model, "_supports_attention_backend", False)
    if not supported:
        raise InvalidArgumentError(
            f"cache: {type(model).__name__} does not attend through transformers' attention interface "
            "(_supports_attention_backend is not True), so keys and values cannot be kept for it; use cache=None"
        )
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _window_attention)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
