"""The interface of a remasking rule."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dlm_samplers.evaluation import Evaluation
from dlm_samplers.parts import Part
from dlm_samplers.policies.base import Policy
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class Revocation:
    """Arguments of `dlm_kernels.revoke_`: how sure the verifier is of the token that stands at a position, and the rule."""

    confidence: Tensor
    """float32 [B, L]."""
    threshold: float | Tensor | None = None
    quota: int | Tensor | None = None
    probability: float | Tensor | None = None


@dataclass(frozen=True)
class Companions:
    """S more columns for a forward: masks beside the canvas that nothing need be committed to."""

    column: Tensor
    """int64 [B, S]: the column whose position each has."""
    scored: Tensor
    """bool [B, S]: those whose scores are read."""
    attention: Tensor
    """bool [B, L + S, L + S]: which columns a column attends to."""


class Remask(Part, ABC):
    """Takes committed tokens back, or replaces them.

    Only tokens of the row's current block that the sampler itself committed come into question. The loop takes back fewer
    tokens than the step committed, so that every row gains ground; a rule on a fixed schedule, which ends by itself, is
    exempt.
    """

    scheduled: ClassVar[bool] = False
    """True when a schedule bounds the number of steps, whatever is taken back."""
    keeps_times: ClassVar[bool] = False
    """True when no token becomes a mask again, so that unmask times drawn beforehand stay what they are (`EventDriven`)."""

    @property
    def policy(self) -> Policy | None:
        """The policy of a method that decides by one law what commits and what is taken back; None: it goes with any."""
        return None

    def companions(self, state: SamplerState) -> Companions | None:
        """Columns beside the canvas in this forward, whose scores `evaluation.companions` has; None: none."""
        return None

    def scored(self, state: SamplerState) -> Tensor | None:
        """The committed tokens in question: their scores are read by default."""
        return revisable(state)

    def rewrite(self, evaluation: Evaluation, chosen: Tensor, state: SamplerState) -> Tensor | None:
        """bool [B, L]: committed positions that take this forward's token instead; None: none. Asked before the commit."""
        return None

    def revoke(self, evaluation: Evaluation, chosen: Tensor, state: SamplerState) -> Revocation | None:
        """What to take back, asked before `chosen` commits, in the state the forward saw; None: nothing."""
        return None


def revisable(state: SamplerState) -> Tensor:
    """bool [B, L]: tokens that the sampler committed in the row's current block."""
    return state.editable & state.in_block & (state.tokens != state.mask_id) & state.live[:, None]
