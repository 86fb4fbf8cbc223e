"""The interface of verification."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from dlm_samplers.parts import Part
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.loop import Loop


class Verify(Part, ABC):
    """Makes several steps of the sampler's own walk of one forward, without changing where the walk leads."""

    @abstractmethod
    def begin(self, loop: Loop) -> Callable[[SamplerState], None]:
        """What `Loop.step` does instead in one `generate` call: advances every live row in place, at least by one step."""
