"""The interface of a stopping rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from dlm_samplers.evaluation import Evaluation
from dlm_samplers.models import ModelSpec
from dlm_samplers.parts import Part
from dlm_samplers.state import SamplerState


class StoppingRule(Part, ABC):
    """Asked after every forward of a row; a row that stops leaves the batch.

    Its remaining masks become end-of-text tokens, or, with `fills`, what this forward proposes for them.
    """

    fills: ClassVar[bool] = False
    """True for rules that stop because the rest is decided: they read the scores of every masked position."""

    def scored(self, state: SamplerState) -> Tensor | None:
        return state.masked() if self.fills else None

    @abstractmethod
    def stop(self, state: SamplerState, spec: ModelSpec, evaluation: Evaluation) -> Tensor:
        """bool [B]: rows that are finished. The state is that after the commit, the evaluation that before it."""
