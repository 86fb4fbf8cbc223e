"""Of each layer's keys and values outside the block only those that the block attends to most are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.caches.attention import Window, like
from dlm_samplers.caches.base import Cache
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.models.adapter import Adapter
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler

BLOCK, FORWARDS = "sparse.block_start", "sparse.forwards"


@dataclass(frozen=True)
class SparseCache(Cache):
    """Inside a block only the block is computed, and it attends to itself and, in each layer, to the `keep_ratio` of the other
    columns that it attended to most (Sparse-dLLM, arXiv:2508.02558).

    keep_ratio: of the columns outside the block.
    delay: forwards over the whole canvas before the one that chooses; the first of a block sees nothing but masks in it.
    kernel: a column's score is the highest among this many neighbours (odd), so that pieces of text stay together.

    The score is the product of the key with the block's mean query, over all heads together. What is kept moves to the front of
    a row's store, so that attention reads no more than that; the store itself stays as large as the canvas.

    Matches the released code's rule (`keep_ratio` 0.5 in its runs, 0.7 by default), which takes a single row. As there, columns
    outside the block are neighbours as if the block were not between them.
    """

    keep_ratio: float = 0.5
    delay: int = 1
    kernel: int = 3

    guarantee = Guarantee.APPROXIMATE
    promise = "the block would have attended to what is evicted, and that would have moved with the block"
    sees: ClassVar[str] = "the block"

    @property
    def opens_with_all(self) -> bool:  # type: ignore[override]
        return self.delay > 0  # a block whose end moves after its first forward cannot have chosen in it

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise InvalidArgumentError(f"keep_ratio must be in (0, 1], got {self.keep_ratio}")
        if isinstance(self.delay, bool) or not isinstance(self.delay, int) or self.delay < 0:
            raise InvalidArgumentError(f"delay must be an int >= 0, got {self.delay!r}")
        if isinstance(self.kernel, bool) or not isinstance(self.kernel, int) or self.kernel < 1 or not self.kernel % 2:
            raise InvalidArgumentError(f"kernel must be an odd int >= 1, got {self.kernel!r}")

    def check(self, sampler: Sampler) -> None:
        super().check(sampler)
        self.check_bidirectional(sampler)
        if sampler.spec.logit_shift:
            raise InvalidArgumentError(
                "SparseCache computes the block alone, and with shifted outputs its first token is predicted by the column "
                "before it; use DualCache"
            )

    def start(self, state: SamplerState) -> None:
        state.memory[BLOCK] = torch.full_like(state.block_start, -1)
        state.memory[FORWARDS] = torch.zeros_like(state.step)

    def columns(self, state: SamplerState) -> Tensor:
        entered = state.memory[BLOCK] != state.block_start
        forwards = torch.where(entered, 0, state.memory[FORWARDS] + 1)
        state.memory[BLOCK], state.memory[FORWARDS] = state.block_start, forwards
        return state.in_block | (forwards <= self.delay)[:, None]

    def apart(self, work: Tensor, state: SamplerState) -> Tensor:
        return state.memory[FORWARDS] > self.delay

    def run(self, adapter: Adapter, tokens: Tensor, window: Window, work: Tensor, state: SamplerState) -> Tensor:
        some = slice(None) if window.rows is None else window.rows
        forwards, block = state.memory[FORWARDS][some], state.in_block[some]
        others = window.visible[:, 0] & ~block
        kept = (others.sum(-1) * self.keep_ratio).long()
        if bool((forwards > self.delay).all()):
            at = window.columns - state.block_start[some, None] + kept[:, None]
            width = kept + block.sum(-1)
            seen = torch.arange(int(width.max()), device=at.device) < width[:, None]
            front = Window(at, seen[:, None], window.store, window.rows, window.batch, window.width, False)
            return adapter.window(tokens, _Front(**vars(window), front=front))
        chooses = forwards == self.delay
        if bool(chooses.any()):
            window = _Choosing(
                **vars(window), kernel=self.kernel, block=block, others=others, kept=kept, chooses=chooses
            )
        return adapter.window(tokens, window)


@dataclass(frozen=True)
class _Front(Window):
    """A forward over blocks, which attend to what is in front of the store; `columns` say where they stand in the canvas."""

    front: Window

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
        return self.front.attend(layer, query, key, value, scaling)


@dataclass(frozen=True)
class _Choosing(Window):
    """A forward over whole canvases, after which the rows that choose keep the block and what it attends to, in front."""

    kernel: int
    block: Tensor
    """bool [b, L]: the block."""
    others: Tensor
    """bool [b, L]: what may be kept beside it."""
    kept: Tensor
    """int64 [b]: how many of these are."""
    chooses: Tensor
    """bool [b]."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
        out = super().attend(layer, query, key, value, scaling)
        order = self._order(query, self.stored(f"cache.{layer}.key"))
        for name in ("key", "value"):
            stored = self.stored(f"cache.{layer}.{name}")
            packed = stored.gather(1, like(order, stored))
            self.put(f"cache.{layer}.{name}", torch.where(self.chooses[:, None, None, None], packed, stored))
        return out

    def _order(self, query: Tensor, keys: Tensor) -> Tensor:
        """int64 [b, L]: the columns kept, from left to right, the block's, and all others."""
        weight = (self.block.gather(1, self.columns) & ~self.repeated()).to(query.dtype)
        mean = (query * weight[:, None, :, None]).sum(2) / weight.sum(-1).clamp(min=1)[:, None, None]
        mean = mean.unflatten(1, (keys.shape[2], -1)).sum(2)  # the queries that share a head of keys
        score = (mean[:, None] * keys).sum((-1, -2)).float()
        beside = (~self.others).to(torch.uint8).argsort(dim=-1, stable=True)
        near = score.masked_fill(~self.others, -torch.inf).gather(1, beside)
        near = torch.nn.functional.max_pool1d(near[:, None], self.kernel, 1, self.kernel // 2)[:, 0]
        near = near.masked_fill(~self.others.gather(1, beside), -torch.inf)
        best = near.argsort(dim=-1, descending=True, stable=True)
        rank = torch.empty_like(best).scatter_(1, best, torch.arange(best.shape[1], device=best.device).expand_as(best))
        chosen = torch.zeros_like(self.others).scatter_(1, beside, rank < self.kept[:, None])
        place = torch.where(chosen, 0, torch.where(self.block, 1, 2))
        return place.argsort(dim=-1, stable=True)
