"""Keys and values of a token are kept once a forward has seen it."""

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

SEEN, FORWARDS = "delayed.seen", "delayed.forwards"


@dataclass(frozen=True)
class DelayedCache(Cache):
    """A forward computes the masks, and the tokens that no forward has computed yet; the others' keys and values are kept
    (dKV-Cache-Decode, arXiv:2505.15781).

    refresh: every this many forwards of a row everything is computed anew, `cache_reloading_step` there.

    What has just been committed is computed once more, as the token that it now is: representations change most in the step
    in which a token is decoded. All masks of the canvas count, those after the block too, so that the saving grows with the
    share of the canvas that is written. Rows need not commit equally many tokens.
    """

    refresh: int = 8

    guarantee = Guarantee.APPROXIMATE
    promise = "a bidirectional model's written tokens would move with the masks; they are kept until the next refresh"
    sees: ClassVar[str] = "masks and new tokens"
    opens_with_all: ClassVar[bool] = True
    computes_suffix: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.refresh, bool) or not isinstance(self.refresh, int) or self.refresh < 1:
            raise InvalidArgumentError(f"refresh must be an int >= 1, got {self.refresh!r}")

    def check(self, sampler: Sampler) -> None:
        super().check(sampler)
        self.check_bidirectional(sampler)

    def start(self, state: SamplerState) -> None:
        state.position_memory[SEEN] = torch.full_like(state.tokens, -1)
        state.memory[FORWARDS] = torch.zeros_like(state.step)

    def columns(self, state: SamplerState) -> Tensor:
        forwards, seen = state.memory[FORWARDS], state.position_memory[SEEN]
        columns = state.masked() | (state.tokens != seen) | (forwards % self.refresh == 0)[:, None]
        state.memory[FORWARDS] = forwards + 1
        state.position_memory[SEEN] = state.tokens.clone()
        return columns
