"""Sums over the positions of a row that do not depend on the width of the batch, not even in the last bit."""

from __future__ import annotations

from torch import Tensor

UNIT = 2.0**-28
"""Values are added up as whole multiples of this, for integers add up to the same in every order."""
LARGEST = 2.0**16
"""What a larger value counts as. 2^18 of them fit an int64."""


def sum_where(values: Tensor, where: Tensor) -> Tensor:
    """float64 [B]: the sum of each row's values [B, L] at bool [B, L]; NaN counts as 0."""
    whole = (values.nan_to_num(0, LARGEST, -LARGEST).clamp(-LARGEST, LARGEST).double() / UNIT).round().long()
    return whole.masked_fill(~where, 0).sum(-1).double() * UNIT
