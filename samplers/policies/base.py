"""The interface of a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dlm_kernels import TokenScores
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.parts import Part
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class Outlook:
    """What a policy would commit in the steps to come if the model's opinion stayed what it is.

    A policy that gives one promises that `select` looks at the scores, the active positions and what `memory` foretells, not
    at the step.
    """

    order: Tensor
    """float [B, L]: within a block, positions commit from the highest to the lowest; -inf where nothing is foreseen."""
    tokens_per_step: int | None
    """Commits of a step; None: as many as the model is sure of."""
    settled: bool
    """True when the order stays what it is whatever the model says later, at least for some steps."""
    memory: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None
    """f(place [B, L], steps [W]) -> {name: [B, W, L]}: `position_memory` as it will be so many steps from here, when each
    position commits in the step `place`. For policies that remember."""


class Policy(Part, ABC):
    """Chooses the positions that commit. A policy is a frozen dataclass whose fields are its paper's symbols."""

    scheduled: ClassVar[bool] = False
    """True when the policy spends a given number of steps on a block, so that `generate(steps=...)` means something."""
    keyed_by_step: ClassVar[bool] = True
    """False when the choice never looks at a sampled token. A token's noise then needs no step in its key, for it is used
    once, and the token drawn at a position depends on the canvas alone."""
    statistics: Literal["model", "sampling"] | None = None
    """The distribution that the statistics in `TokenScores` describe, as `score_tokens(confidence=...)`: the model's own, at
    temperature 1, or the tempered and filtered one that tokens are drawn from. None: the sampler family's."""
    foresees: ClassVar[bool] = False
    """True when `candidates` may leave a row without any, so that the row needs no forward in this step."""

    def candidates(self, state: SamplerState) -> Tensor:
        """bool [B, L]: the positions of `state.active` that `select` may return, as far as is known before the forward."""
        return state.active

    def observe(self, evaluation: Evaluation, state: SamplerState) -> TokenScores:
        """The scores that `select` and the commit use. For methods that change them, or remember what they saw."""
        return evaluation.scores

    def preference(self, scores: TokenScores, state: SamplerState) -> Tensor:
        """[B, L], the higher the sooner: which of the positions it selects it would rather commit, for filters over policies.

        Where `keyed_by_step` is False it looks at no sampled token either.
        """
        return scores.confidence

    def outlook(self, scores: TokenScores, state: SamplerState) -> Outlook | None:
        """The steps to come, for verification to draft them; None: it asks `select` instead, step by step."""
        return None

    def noise(self, state: SamplerState) -> Tensor | None:
        """float32 [B]: the noise level that its schedule says the rows are at, as a share of masks; None: it keeps none.

        For models that are given the time.
        """
        return None

    def leeway(self, scores: TokenScores, chosen: Tensor, state: SamplerState) -> Tensor | None:
        """float [B]: how much the scores may change before another set than `chosen` bool [B, L] does; None: not known.

        Asked after `select`, for `DraftVerify(guard=...)`.
        """
        return None

    @abstractmethod
    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        """bool [B, L], a subset of `candidates`. `scores` holds [B, L] statistics, meaningful where candidates are.

        An unscheduled policy selects at least one position of every live row, which bounds the number of steps.
        """


def column(value: float | Tensor) -> float | Tensor:
    """What `SamplerState.per_request` gives, to compare with [B, L]."""
    return value[:, None] if isinstance(value, Tensor) else value


def gap(score: Tensor, chosen: Tensor, others: Tensor) -> Tensor:
    """float [B]: the least chosen score [B, L] minus the greatest of `others`; infinite where either set is empty."""
    least = score.masked_fill(~chosen, torch.inf).amin(-1)
    return least - score.masked_fill(~others, -torch.inf).amax(-1)


def per_request(value: float | Sequence[float]) -> Sequence[float]:
    """The values of a parameter given once, or once per request."""
    return (value,) if isinstance(value, (int, float)) else value
