"""The arguments that the transitions from time t to an earlier time s share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm_kernels import arguments
from dlm_kernels.errors import InvalidArgumentError


def signal_levels(alpha_t: Any, alpha_s: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of signal at t and s, per row [B], fp64: differences of close ones decide who jumps. s is nearer to the data."""
    levels = [
        arguments.floats(name, value, like.shape[:1], like, at_least=0.0, at_most=1.0, dtype=torch.float64)
        for name, value in (("alpha_t", alpha_t), ("alpha_s", alpha_s))
    ]
    if not isinstance(alpha_t, Tensor) and not isinstance(alpha_s, Tensor) and alpha_s < alpha_t:
        raise InvalidArgumentError(
            f"alpha_s must be at least alpha_t: the step goes to the data; got {alpha_s} < {alpha_t}"
        )
    return levels[0], levels[1]
