"""Keys and values of everything before the current block are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dlm_samplers.caches.refreshed import RefreshedCache
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class PrefixCache(RefreshedCache):
    """Inside a block only the block and what follows it are computed; keys and values of what precedes it are those of the
    forward that opened the block (Fast-dLLM, arXiv:2505.22618, sec. 3.2).
    """

    guarantee = Guarantee.APPROXIMATE
    promise = (
        "a bidirectional model's prefix would move with the block; its keys and values are kept until the next block"
    )
    sees: ClassVar[str] = "the block and what follows it"
    computes_suffix: ClassVar[bool] = True

    def window(self, state: SamplerState) -> Tensor:
        return state.column >= state.block_start[:, None]
