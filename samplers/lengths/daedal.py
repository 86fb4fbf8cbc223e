"""DAEDAL: a canvas that grows until the model has room for its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.lengths.base import LengthRule
from dlm_samplers.models import ModelSpec
from dlm_samplers.state import SamplerState
from dlm_samplers.sums import sum_where

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler


@dataclass(frozen=True)
class DAEDAL(LengthRule):
    """Start with a short canvas; lengthen it until the model sees its end, then where the model is at a loss (DAEDAL,
    arXiv:2508.00819).

    First, nothing commits and the canvas grows by e_factor masks a forward, until the confidence in the end of text reaches
    tau_eos: the sum of the confidences of the last w_eos proposals of end of text, divided by w_eos. Then w_eos / 2 more.
    Later, in a step in which that confidence is below tau_expand, the least confident mask of the block, if it is less
    confident than tau_low, becomes e_factor masks.

    l_init: masks to start with.

    Matches `generate` of the authors' repository, whose policy is Threshold(0.9, strict=True) in blocks of 32, and whose
    limit, `max_new_tokens` here, is 2048. Where an insertion meets the limit that code drops tokens at the end, here fewer
    masks are inserted; there a canvas at the limit is evaluated once more before its first commit. Above temperature 0
    proposals are samples, there the likeliest tokens. Masks in the prompt are never multiplied.
    """

    l_init: int = 64
    e_factor: int = 8
    tau_eos: float = 0.5
    tau_low: float = 0.1
    tau_expand: float = 0.9
    w_eos: int = 32

    guarantee = Guarantee.APPROXIMATE
    promise = "the length decides what the model sees; no fixed length gives the same text"

    def __post_init__(self) -> None:
        for name, least in (("l_init", 1), ("e_factor", 2), ("w_eos", 1)):
            if getattr(self, name) < least:
                raise InvalidArgumentError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("tau_eos", "tau_low", "tau_expand"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidArgumentError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    def check(self, sampler: Sampler) -> None:
        super().check(sampler)
        if sampler.spec.eos_id is None or sampler.spec.eos_id in sampler.spec.never:
            raise InvalidArgumentError(
                "DAEDAL measures the confidence in the end of text: pass eos_id=, and do not suppress it"
            )

    def start(self, state: SamplerState) -> None:
        limit = state.length
        state.shorten(torch.minimum(limit, state.prompt_length + self.l_init))
        state.memory["daedal.limit"] = limit
        state.memory["daedal.growing"] = state.length < limit

    def waiting(self, state: SamplerState) -> Tensor:
        return state.memory["daedal.growing"]

    def scored(self, state: SamplerState) -> Tensor:
        return self._generated(state)

    def insertions(self, state: SamplerState, spec: ModelSpec, evaluation: Evaluation) -> tuple[Tensor, Tensor]:
        growing, room = self.waiting(state), state.memory["daedal.limit"] - state.length
        sure = self._end_confidence(state, spec, evaluation)
        short = growing & (sure < self.tau_eos)
        growth = torch.where(short, self.e_factor, self.w_eos // 2)

        inside = state.column < state.block_end[:, None]
        stays = evaluation.masked & state.masked() & inside & self._generated(state)
        confidence = evaluation.scores.confidence.masked_fill(~stays, torch.inf)
        lowest, weakest = confidence.min(-1).values, confidence.argmin(-1)
        lost = (lowest < self.tau_low) & (sure < self.tau_expand)
        expansion = torch.where(lost, self.e_factor - 1, 0)

        count = torch.minimum(torch.where(growing, growth, expansion), room) * state.live
        state.memory["daedal.growing"] = short & (count < room)
        return torch.where(growing, state.length - 1, weakest), count

    def _end_confidence(self, state: SamplerState, spec: ModelSpec, evaluation: Evaluation) -> Tensor:
        ends = (evaluation.scores.token == spec.eos_id) & self._generated(state)
        from_right = ends.flip(-1).cumsum(-1).flip(-1)
        return sum_where(evaluation.scores.confidence, ends & (from_right <= self.w_eos)) / self.w_eos

    def _generated(self, state: SamplerState) -> Tensor:
        return (state.column >= state.prompt_length[:, None]) & state.valid
