"""DUS: a fixed order from coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy
from dlm_samplers.state import SamplerState

ROUND = "dilated.round"


@dataclass(frozen=True)
class Dilated(Policy):
    """Round r of a block of B tokens commits what is left of every floor(B / a^r)-th position, whatever the model thinks of it:
    about log_a B forwards, neighbours last (Dilated Unmasking Scheduler, arXiv:2506.19037).

    base: a.

    B is the block length, or with block_length=None the length of the row's generated region; positions count from the end of
    the prompt. A round that has nothing to commit in a row (blanks in a prompt, a short last block) is passed over. The
    last round has stride 1. The authors' code also merges the last round into the one before where it is the smaller, which
    makes neighbours commit together, and by default takes back what has less than 0.3 confidence, without ever coming back to
    it; here nothing is taken back unless a remasking rule does, and its position is committed anew.

    No statistic is read, so at temperature > 0 the tokens are draws from the model's marginals in a fixed order, and only the
    positions of the round are scored. Breaks with large blocks: the last round commits every other position of B at once.
    """

    base: int = 2

    guarantee = Guarantee.APPROXIMATE
    promise = "the order is fixed before any token is known; distance bounds no joint error"
    keyed_by_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.base < 2:
            raise InvalidArgumentError(f"base must be an int >= 2, got {self.base}")

    def start(self, state: SamplerState) -> None:
        offset = state.column - state.prompt_length[:, None]
        if state.block_length is None:
            generated = state.length - state.prompt_length
            length = torch.where(generated > 0, generated, state.length)[:, None]  # infilling: the row itself
            longest = state.width
        else:
            offset = offset.remainder(state.block_length)
            length = torch.full_like(state.length, state.block_length)[:, None]
            longest = state.block_length
        rounds = 1
        while longest // self.base**rounds > 1:
            rounds += 1
        first = torch.full_like(offset, rounds - 1)  # the last round takes all
        for round_ in reversed(range(rounds - 1)):
            stride = (length // self.base ** (round_ + 1)).clamp(min=1)
            first = torch.where(offset % stride == 0, round_, first)
        state.position_memory[ROUND] = first

    def candidates(self, state: SamplerState) -> Tensor:
        rounds = state.position_memory[ROUND].masked_fill(~state.active, torch.iinfo(torch.int64).max)
        return state.active & (rounds == rounds.amin(-1, keepdim=True))

    def preference(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return -state.column.float().expand_as(state.tokens)

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return self.candidates(state)
