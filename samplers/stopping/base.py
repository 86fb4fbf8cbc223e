"""The interface of a stopping rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from dlm_samplers.guarantees import Guarantee
from dlm_samplers.models import ModelSpec
from dlm_samplers.state import SamplerState


class StoppingRule(ABC):
    """Asked after every step; a row that stops leaves the batch and its remaining masks become end-of-text tokens."""

    guarantee: ClassVar[Guarantee]

    def check(self, spec: ModelSpec) -> None:  # noqa: B027 (a hook, not an omission)
        """Raises InvalidArgumentError when the rule cannot work with this model."""

    @abstractmethod
    def stop(self, state: SamplerState, spec: ModelSpec) -> Tensor:
        """bool [B]: rows that are finished."""
