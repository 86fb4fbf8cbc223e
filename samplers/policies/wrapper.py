"""A policy that changes another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from dlm_kernels import TokenScores
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.policies.base import Policy
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler


class Wrapper(Policy):
    """Passes on everything but what its subclass overrides."""

    inner: Policy

    @property
    def needs_logits(self) -> bool:  # type: ignore[override]
        return self.inner.needs_logits

    @property
    def needs_greedy(self) -> bool:  # type: ignore[override]
        return self.inner.needs_greedy

    @property
    def scheduled(self) -> bool:  # type: ignore[override]
        return self.inner.scheduled

    @property
    def keyed_by_step(self) -> bool:  # type: ignore[override]
        return self.inner.keyed_by_step

    @property
    def statistics(self) -> Literal["model", "sampling"] | None:  # type: ignore[override]
        return self.inner.statistics

    @property
    def foresees(self) -> bool:  # type: ignore[override]
        return self.inner.foresees

    def check(self, sampler: Sampler) -> None:
        self.inner.check(sampler)

    def start(self, state: SamplerState) -> None:
        self.inner.start(state)

    def scored(self, state: SamplerState) -> Tensor | None:
        return self.inner.scored(state)

    def candidates(self, state: SamplerState) -> Tensor:
        return self.inner.candidates(state)

    def observe(self, evaluation: Evaluation, state: SamplerState) -> TokenScores:
        return self.inner.observe(evaluation, state)

    def preference(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return self.inner.preference(scores, state)

    def noise(self, state: SamplerState) -> Tensor | None:
        return self.inner.noise(state)

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return self.inner.select(scores, state)
