"""What a speed-up preserves, as a value that composes."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class Guarantee(IntEnum):
    """Ordered from the strongest promise to the weakest; a composition keeps the weakest of its parts."""

    EXACT = 0
    """Same distribution as the reference sampler."""
    PATH_EXACT = 1
    """Same tokens as the reference policy, step for step, given the same logits."""
    TEXT_EXACT = 2
    """Same returned text; work after the end of the text is skipped."""
    BOUNDED = 3
    """The error of each step has a stated bound."""
    APPROXIMATE = 4
    """Measured only."""

    def __str__(self) -> str:
        return self.name.lower()

    @staticmethod
    def weakest(guarantees: Iterable[Guarantee]) -> Guarantee:
        """The guarantee of a composition. `EXACT` when there is nothing to compose."""
        return max(guarantees, default=Guarantee.EXACT)
