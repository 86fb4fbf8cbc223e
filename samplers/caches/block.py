"""Keys and values of finished blocks are kept: exact where attention is block-causal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.caches.base import Cache
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler


@dataclass(frozen=True)
class BlockCache(Cache):
    """For block-causal models (BD3-LM, arXiv:2503.09573; SDAR, LLaDA2), `ModelSpec.block_length`: a position sees its own block
    and those before it, so what is kept never changes.

    The forward that opens a block also computes the block before it, once, with its final tokens; the first one the prompt.
    Remasking takes back tokens of the current block alone, which every forward computes anew.
    """

    guarantee = Guarantee.PATH_EXACT
    promise = "in a block-causal model what precedes a block does not depend on it"
    sees: ClassVar[str] = "the block"

    def check(self, sampler: Sampler) -> None:
        super().check(sampler)
        if sampler.spec.block_length is None:
            raise InvalidArgumentError(
                "BlockCache is for block-causal models: give spec=ModelSpec(..., block_length=...), or use PrefixCache or "
                "DualCache for a bidirectional one"
            )

    def start(self, state: SamplerState) -> None:
        state.memory["cache.final"] = torch.zeros_like(state.block_end)  # columns left of it are kept with final tokens

    def columns(self, state: SamplerState) -> Tensor:
        first = state.memory["cache.final"][:, None]
        state.memory["cache.final"] = state.block_start
        return (state.column >= first) & (state.column < state.block_end[:, None])
