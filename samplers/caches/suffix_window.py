"""Most masks far behind the block are left out of the canvas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, keyed_uniform
from dlm_kernels.reference.philox import SUFFIX_STREAM
from dlm_samplers.caches.base import Cache
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler

BLOCK, LEFT = "suffix_window.block", "suffix_window.left"


@dataclass(frozen=True)
class SuffixWindow(Cache):
    """Of what follows the block only a random part near it is computed and seen, the nearer the likelier (DPad,
    arXiv:2508.14148).

    A column at distance d < window behind the block stays with probability scale * N(k_sigma * d / window), N the standard
    normal density; farther ones are dropped. Columns keep their rotary positions. The choice is made anew for each block.

    inner: the cache of what stays, such as PrefixCache(); None computes all of it in every forward.

    Matches `generate` of the authors' repository, whose choice comes from the global generator; here it is keyed by seed,
    request and position, so that it does not depend on the batch.
    """

    window: int = 256
    scale: float = 2.0
    k_sigma: float = 4.0
    inner: Cache | None = None

    guarantee = Guarantee.APPROXIMATE
    promise = "the model would have seen masks that are left out"
    sees: ClassVar[str] = "a part of what follows the block"

    def __post_init__(self) -> None:
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 0:
            raise InvalidArgumentError(f"window must be an int >= 0, got {self.window!r}")
        for name in ("scale", "k_sigma"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidArgumentError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if self.inner is not None and (not isinstance(self.inner, Cache) or isinstance(self.inner, SuffixWindow)):
            raise InvalidArgumentError(f"inner must be another cache or None, got {self.inner!r}")

    def check(self, sampler: Sampler) -> None:
        super().check(sampler)
        self.check_bidirectional(sampler)
        if self.inner is not None:
            self.inner.check(sampler)

    def start(self, state: SamplerState) -> None:
        state.memory[BLOCK] = torch.full_like(state.block_start, -1)
        state.position_memory[LEFT] = state.valid.clone()
        if self.inner is not None:
            self.inner.start(state)

    def columns(self, state: SamplerState) -> Tensor:
        entered = state.memory[BLOCK] != state.block_start
        state.memory[BLOCK] = state.block_start
        distance = (state.column - state.block_end[:, None]).float()
        x = distance * (self.k_sigma / max(self.window, 1))
        probability = (self.scale / math.sqrt(2 * math.pi)) * torch.exp(-0.5 * x * x)
        u = keyed_uniform(state.seed[:, None], state.row_ids, state.block_start[:, None], stream=SUFFIX_STREAM)
        left = (distance < 0) | ((distance < self.window) & (u < probability))
        state.position_memory[LEFT] = torch.where(entered[:, None], left, state.position_memory[LEFT])
        columns = state.valid if self.inner is None else self.inner.columns(state)
        return columns & state.position_memory[LEFT]

    def visible(self, state: SamplerState) -> Tensor:
        return state.valid & state.position_memory[LEFT]
