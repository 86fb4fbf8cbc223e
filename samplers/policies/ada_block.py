"""AdaBlock: blocks that end where a sentence or a line does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy
from dlm_samplers.policies.threshold import Threshold
from dlm_samplers.policies.wrapper import Wrapper
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler


@dataclass(frozen=True)
class AdaBlock(Wrapper):
    """A block ends at the likeliest delimiter that its first forward predicts (AdaBlock-dLLM, arXiv:2509.26432).

    delimiters: ids of the tokens that end a unit of text, such as the newline (198 in LLaDA's vocabulary).
    tau_d: confidence that a delimiter needs; upstream 0.3 for LLaDA, 0.5 for Dream. Where none has it the block is as long
        as `generate(block_length=...)` says, counted from its first mask.
    window: share of the row's blanks in which a delimiter is looked for.
    inner: what commits within the block; a policy without a schedule, for blocks differ in length.

    As the released code (`compute_block_length`): among predicted delimiters the most confident ends the block, the first
    of equals, and the same forward then commits. Rows decide each for itself.
    """

    delimiters: tuple[int, ...]
    tau_d: float = 0.3
    window: float = 0.25
    inner: Policy = field(default_factory=Threshold)

    guarantee = Guarantee.APPROXIMATE
    promise = "where blocks end changes what later blocks see"
    keyed_by_step: ClassVar[bool] = True  # the end of a block depends on the tokens predicted

    def __post_init__(self) -> None:
        if not self.delimiters:
            raise InvalidArgumentError("delimiters must name at least one token id, got none")
        if not 0 < self.tau_d <= 1:
            raise InvalidArgumentError(f"tau_d must be in (0, 1], got {self.tau_d}")
        if not 0 < self.window <= 1:
            raise InvalidArgumentError(f"window must be in (0, 1], got {self.window}")
        if self.inner.scheduled:
            raise InvalidArgumentError(
                f"inner must be a policy without a schedule, such as Threshold(0.9) or FixedQuota(tokens_per_step=...); "
                f"got {self.inner!r}"
            )

    def check(self, sampler: Sampler) -> None:
        if sampler.spec.vocab_size is not None and not all(0 <= d < sampler.spec.vocab_size for d in self.delimiters):
            raise InvalidArgumentError(
                f"delimiters must be token ids in [0, {sampler.spec.vocab_size}), got {self.delimiters}"
            )
        if sampler.length is not None:
            raise InvalidArgumentError(
                f"AdaBlock sets the ends of blocks by column, and {type(sampler.length).__name__} moves columns; "
                "leave one of them out"
            )
        if sampler.cache is not None and not sampler.cache.opens_with_all:
            raise InvalidArgumentError(
                f"AdaBlock looks for the end of a block ahead of it, and {type(sampler.cache).__name__} computes "
                f"{sampler.cache.sees} alone; use PrefixCache"
            )
        self.inner.check(sampler)

    def candidates(self, state: SamplerState) -> Tensor:
        first, window, default_end = self._reach(state)
        furthest = torch.maximum(first + window, default_end)
        entering = state.masked() & (state.column < furthest[:, None]) & state.live[:, None]
        return torch.where(self._enters(state)[:, None], entering, self.inner.candidates(state))

    def observe(self, evaluation: Evaluation, state: SamplerState) -> TokenScores:
        """Sets the end of the blocks that rows have just entered."""
        first, window, default_end = self._reach(state)
        scores, masked, column = evaluation.scores, state.masked(), state.column
        delimiter = torch.zeros_like(masked)
        for token in self.delimiters:
            delimiter |= scores.token == token
        in_window = (column >= first[:, None]) & (column < (first + window)[:, None])
        confidence = torch.where(delimiter & in_window & masked, scores.confidence, -1.0)
        best, at = confidence.max(-1)
        end = torch.where(best >= self.tau_d, at + 1, default_end)
        state.block_end = torch.where(self._enters(state), end, state.block_end)
        state.active = masked & (column < state.block_end[:, None]) & state.live[:, None]
        state.block_masks = torch.where(self._enters(state), state.remaining, state.block_masks)
        return self.inner.observe(evaluation, state)

    def _enters(self, state: SamplerState) -> Tensor:
        """bool [B]: rows in the first step of a block."""
        return state.live & (state.block_step == 0)

    def _reach(self, state: SamplerState) -> tuple[Tensor, Tensor, Tensor]:
        """int64 [B] each: the first mask, how many columns from there on may hold the end, and the end without one."""
        first = state.masked().int().argmax(-1)
        window = (state.editable.sum(-1) * self.window).long()
        block = state.width if state.block_length is None else state.block_length
        return first, window, torch.minimum(first + block, state.length)
