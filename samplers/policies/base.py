"""The interface of a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from dlm_kernels import TokenScores
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.state import SamplerState


class Policy(ABC):
    """Chooses the positions that commit. A policy is a frozen dataclass whose fields are its paper's symbols."""

    guarantee: ClassVar[Guarantee]
    scheduled: ClassVar[bool] = False
    """True when the policy spends a given number of steps on a block, so that `generate(steps=...)` means something."""

    @abstractmethod
    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        """bool [B, L], a subset of `state.active`. `scores` holds [B, L] statistics, meaningful where active.

        An unscheduled policy selects at least one position of every live row, which bounds the number of steps.
        """
