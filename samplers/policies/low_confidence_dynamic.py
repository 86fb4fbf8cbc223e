"""The decision rule of SDAR and LLaDA2: a quota, or all that is sure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy, per_request
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class LowConfidenceDynamic(Policy):
    """Commit every position whose probability exceeds tau, and at least the quota of the step, the best ones
    (SDAR's low_confidence_dynamic, arXiv:2510.06303; LLaDA2, arXiv:2512.15745; diffusers' BlockRefinementScheduler).

    tau: one number or one per request; 1 or more leaves the quota alone.
    denoising_steps: the quotas spread a block's length evenly over so many steps, the remainder first; None: one a step.

    The probability is that of the tempered and filtered distribution, in which the token was drawn, as upstream has it.
    """

    tau: float | tuple[float, ...] = 0.85
    denoising_steps: int | None = None

    statistics: ClassVar[Literal["model", "sampling"] | None] = "sampling"  # type: ignore[misc]  # no field here
    guarantee = Guarantee.APPROXIMATE
    promise = "a fixed threshold bounds no joint error once more than tau / (1 - tau) tokens commit together"

    def __post_init__(self) -> None:
        if not all(tau >= 0 for tau in per_request(self.tau)):
            raise InvalidArgumentError(f"tau must be >= 0, got {self.tau}")
        steps = self.denoising_steps
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise InvalidArgumentError(f"denoising_steps must be an int >= 1 or None, got {steps!r}")

    def quota(self, state: SamplerState) -> int | Tensor:
        """Of this step: one number, or int64 [B]."""
        if self.denoising_steps is None:
            return 1
        size = state.length if state.block_length is None else torch.full_like(state.length, state.block_length)
        return size // self.denoising_steps + (state.block_step < size % self.denoising_steps)

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        # A tensor, for as a number a threshold has to lie in (0, 1].
        tau = torch.as_tensor(state.per_request(self.tau), dtype=torch.float32, device=state.tokens.device)
        return select_positions(scores.confidence, state.active, quota=self.quota(state), threshold=tau, strict=True)
