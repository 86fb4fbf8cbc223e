"""The interface of a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from dlm_kernels import TokenScores
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.parts import Part
from dlm_samplers.state import SamplerState


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

    @abstractmethod
    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        """bool [B, L], a subset of `candidates`. `scores` holds [B, L] statistics, meaningful where candidates are.

        An unscheduled policy selects at least one position of every live row, which bounds the number of steps.
        """


def per_request(value: float | Sequence[float]) -> Sequence[float]:
    """The values of a parameter given once, or once per request."""
    return (value,) if isinstance(value, (int, float)) else value
