"""What every part of a sampler (policy, remasking, stopping rule, verification) says about itself."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from dlm_samplers.guarantees import Guarantee
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler


class Part:
    """A plug-in: a frozen dataclass whose fields are its paper's symbols. What it remembers lives in the state, per row."""

    guarantee: ClassVar[Guarantee]
    promise: ClassVar[str] = ""
    """What the guarantee rests on, in a sentence that `Sampler.explain` prints."""
    needs_logits: ClassVar[bool] = False
    """True for a part that reads more of the vocabulary than `TokenScores`; without it a sampler may leave the logits out."""

    needs_greedy: ClassVar[bool] = False
    """True for a part that reads `Evaluation.greedy`: above temperature 0 this scores the positions a second time."""

    def __str__(self) -> str:
        """The call that makes it, defaults left out."""
        given = (
            f"{entry.name}={value}"
            for entry in fields(self)  # type: ignore[arg-type]
            if entry.repr and (value := getattr(self, entry.name)) != _default(entry)
        )
        return f"{type(self).__name__}({', '.join(given)})"

    def check(self, sampler: Sampler) -> None:
        """Raises InvalidArgumentError, naming the nearest legal choice, when it cannot work with the sampler's other parts."""

    def start(self, state: SamplerState) -> None:
        """Reserves what it remembers: tensors [B, ...] in `state.memory` and [B, L, ...] in `state.position_memory`."""

    def scored(self, state: SamplerState) -> Tensor | None:
        """bool [B, L]: positions whose scores it reads in this step, beyond those that may commit; None if there are none."""
        return None


def _default(entry: Field[Any]) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()
