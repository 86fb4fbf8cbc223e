"""Attention of a window of queries over kept keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.models.own_attention import intercepting

if TYPE_CHECKING:
    from dlm_samplers.models.adapter import Adapter

NAME = "dlm_kernels_window"


@dataclass(frozen=True)
class Window:
    """The columns a forward computes and the store that its attention reads. Passed along the model's keyword arguments.

    A model that does not attend through transformers' attention interface takes one too if its attention calls `attend` and
    it says so: `takes_dlm_window = True`.
    """

    columns: Tensor
    """int64 [b, n]: where the inputs stand. A column may be repeated, with the same token."""
    visible: Tensor
    """bool [b, n or 1, S]: the columns, of the first S, that each input attends to."""
    store: dict[str, Tensor]
    """"cache.<layer>.key" and ".value" [B, L, H, D]: keys with their rotary positions in them; written in place."""
    rows: Tensor | None
    """int64 [b]: rows of the store that these are; None: all B."""
    batch: int
    """B."""
    width: int
    """L >= S."""
    full: bool
    """True where every input attends to all S columns: attention gets no mask, for its fastest kernels take none."""

    @cached_property
    def bias(self) -> Tensor:
        """float32 [b, 1, n or 1, S]: 0 where an input attends, else -inf. Made once: attention would make it in every layer."""
        return torch.zeros_like(self.visible, dtype=torch.float32).masked_fill_(~self.visible, -torch.inf)[:, None]

    def repeated(self) -> Tensor:
        """bool [b, n]: inputs that repeat the column before them, which fill up short rows."""
        return torch.nn.functional.pad(self.columns[:, 1:] == self.columns[:, :-1], (1, 0))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
        """[b, n, H, D] from query [b, H, n, D], key and value [b, H of keys, n, D]; these replace the stored ones."""
        keys, values = (
            self.keep(f"cache.{layer}.{name}", new.transpose(1, 2))[:, : self.visible.shape[-1]].transpose(1, 2)
            for name, new in (("key", key), ("value", value))
        )
        grouped = query.shape[1] != key.shape[1]
        mask = None if self.full else self.bias.to(query.dtype)
        out = torch.nn.functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scaling, enable_gqa=grouped
        )
        return out.transpose(1, 2)

    def keep(self, name: str, new: Tensor) -> Tensor:
        """Replaces what is stored of the columns by `new` [b, n, ...]; all that is stored of the rows, [b, L, ...]."""
        if name not in self.store:
            self.store[name] = new.new_zeros(self.batch, self.width, *new.shape[2:])
        stored = self.store[name]
        if self.rows is None:
            return stored.scatter_(1, like(self.columns, new), new)
        stored[self.rows[:, None], self.columns] = new
        return stored[self.rows]

    def stored(self, name: str) -> Tensor:
        """What is stored of the rows, [b, L, ...]."""
        return self.store[name] if self.rows is None else self.store[name][self.rows]

    def put(self, name: str, whole: Tensor) -> None:
        """Replaces what is stored of the rows by [b, L, ...]."""
        if self.rows is None:
            self.store[name] = whole
        else:
            self.store[name][self.rows] = whole

    def at_columns(self, name: str) -> Tensor:
        """What is stored of the columns, [b, n, ...]."""
        stored = self.stored(name)
        return stored.gather(1, like(self.columns, stored))


def like(index: Tensor, value: Tensor) -> Tensor:
    """An index [b, n] of the second dimension of value [b, m, ...], in the shape that gather and scatter want."""
    return index.reshape(index.shape + (1,) * (value.ndim - 2)).expand(*index.shape, *value.shape[2:])


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
def window_attention(adapter: Adapter) -> Iterator[None]:
    """While it lasts, `adapter.window(tokens, Window(...))` computes a window; the model is as it was afterwards.

    The first way that fits: the model takes windows by itself; its modules are published code, or named in the description,
    that calls scaled_dot_product_attention; it attends through transformers' attention interface. Published code goes before
    the interface, for some of it says that it attends through that and does not.

    Raises InvalidArgumentError where none does.
    """
    model: Any = adapter.model
    if getattr(model, "takes_dlm_window", False):
        yield
        return
    if adapter.own_attention:
        with intercepting(adapter.own_attention):
            yield
        return
    if not getattr(model, "_supports_attention_backend", False):
        raise InvalidArgumentError(
            f"cache: {type(model).__name__} does not attend through transformers' attention interface "
            "(_supports_attention_backend is not True), and none of its modules is published code that is known here, so keys "
            "and values cannot be kept for it; use cache=None, name the class of its modules that call "
            "scaled_dot_product_attention, spec=ModelSpec(..., attention=...), or let its attention call dlm_window.attend "
            "(dlm_samplers.caches.attention.Window)"
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


@torch.no_grad()
def check_positions(adapter: Adapter) -> None:
    """Raises InvalidArgumentError for a model whose attention is answered without being known, and which makes nothing of the
    position ids that it takes. Runs it twice, on two tokens."""
    if not adapter.own_attention or adapter.own_attention.knows_columns:
        return
    states = []
    for last in (1, 7):
        columns = torch.tensor([[0, last]], device=adapter.device)
        visible = torch.zeros(1, 1, 8, dtype=torch.bool, device=columns.device).index_fill_(-1, columns[0], True)
        with window_attention(adapter):
            states.append(adapter.window((columns > 0).long(), Window(columns, visible, {}, None, 1, 8, False)))
    if torch.equal(*states):
        raise InvalidArgumentError(
            f"cache: {type(adapter.model).__name__} takes position ids and gives the same states at any, so the columns that a "
            "forward computes cannot be placed; use cache=None"
        )
