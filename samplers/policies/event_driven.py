"""Random-order unmasking without idle steps: the times at which positions unmask are drawn before any token."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, keyed_uniform
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler

Alpha = Literal["linear", "cosine"] | Callable[[Tensor], Tensor]

ALPHAS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: 1 - torch.cos(math.pi / 2 * (1 - t)),
}
"""Share of clean tokens at time t: MDLM's log-linear noise; MD4's cosine (arXiv:2406.04329), which is MaskGIT's."""

EVENT = "event_driven.event"


@dataclass(frozen=True)
class EventDriven(Policy):
    """Ancestral sampling, event by event: each forward advances a row to the next step in which a mask of it flips.

    In the ancestral sampler of a model that sees no time (MDLM, RADD, LLaDA in random order), which positions flip in which
    step does not depend on the logits. So a position's time is drawn first (first-hitting, arXiv:2409.02908, and DNDM,
    arXiv:2312.09193), each row visits its own non-empty steps, and only the positions of its next event are scored.
    A block of L masks then costs T(1 - (1 - 1/T)^L) forwards on average instead of T, at any batch size.

    grid: steps T of the ancestral sampler whose law this is, in each block; None: time is continuous, so that every event
        is one position (in the order of `FixedQuota("random")`, token for token).
    alpha: share of clean tokens at time t in [0, 1], falling from alpha(0) = 1: "linear", "cosine" or a function of an fp64
        tensor of times.
    eps: time of the last step, which commits what is left. 0 makes linear alpha's steps equally likely; 1e-3 is Dream's.
    """

    grid: int | None = None
    alpha: Alpha = "linear"
    eps: float = 0.0

    guarantee = Guarantee.EXACT
    promise = (
        "the ancestral sampler's own distribution: its flips do not depend on the logits of a model that sees no time"
    )
    keyed_by_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.grid is not None and (isinstance(self.grid, bool) or not isinstance(self.grid, int) or self.grid < 1):
            raise InvalidArgumentError(f"grid must be an int >= 1 or None, got {self.grid!r}")
        if not callable(self.alpha) and self.alpha not in ALPHAS:
            raise InvalidArgumentError(f"alpha must be one of {tuple(ALPHAS)} or a function, got {self.alpha!r}")
        if not 0 <= self.eps < 1:
            raise InvalidArgumentError(f"eps must be in [0, 1), got {self.eps}")
        if self.grid is not None:
            self.boundaries()

    def check(self, sampler: Sampler) -> None:
        if sampler.spec.sees_time:
            raise InvalidArgumentError(
                "EventDriven needs a model that sees no time: rows of a batch are at different times, and steps without a "
                "flip are left out. For a model with spec.sees_time use AncestralUnmask()"
            )
        if sampler.remask is not None and not sampler.remask.keeps_times:
            raise InvalidArgumentError(
                f"EventDriven draws each position's time once, and {type(sampler.remask).__name__} takes tokens back after "
                "their time. Use AncestralUnmask() with it, or leave remask out"
            )

    def boundaries(self) -> Tensor:
        """fp64 [T - 1], rising: a position whose uniform number is below the k-th from the top unmasks after step k.

        A position is still masked at time t with probability (1 - alpha(t)) / (1 - alpha(1)), so that uniform number is
        this function at the time of its flip. Raises InvalidArgumentError where alpha rises with t or leaves [0, 1].
        """
        assert self.grid is not None
        alpha = ALPHAS[self.alpha] if isinstance(self.alpha, str) else self.alpha
        t = torch.linspace(self.eps, 1, self.grid + 1, dtype=torch.float64)
        masked = 1 - torch.as_tensor(alpha(t), dtype=torch.float64)
        if masked.shape != t.shape or not bool((masked.diff() >= 0).all() & (masked[0] >= 0) & (masked[-1] > 0)):
            raise InvalidArgumentError(
                "alpha must map fp64 times [T + 1] to shares of clean tokens that fall from at most 1 at t = 0 to less than 1 "
                f"at t = 1; {self.alpha!r} does not"
            )
        return masked[1:-1] / masked[-1]

    def event(self, u: Tensor) -> Tensor:
        """int64 [B, L]: a number that rises from event to event, by uniform numbers u [B, L]: the higher, the earlier."""
        if self.grid is None:  # ties, of which fp32 has some, go to the lowest position
            return u.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return self.grid - 1 - torch.searchsorted(self.boundaries().to(u.device), u.double(), right=True)

    def start(self, state: SamplerState) -> None:
        # Keyed like the order of FixedQuota("random"): without a step, for a position flips once.
        state.position_memory[EVENT] = self.event(keyed_uniform(state.seed[:, None], state.row_ids, 0))

    def candidates(self, state: SamplerState) -> Tensor:
        event = state.position_memory[EVENT]
        later = torch.iinfo(event.dtype).max
        following = event.masked_fill(~state.active, later).amin(-1, keepdim=True)
        return state.active & (event == following)

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return self.candidates(state)
