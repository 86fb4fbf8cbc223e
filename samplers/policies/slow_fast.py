"""SlowFast: explore until the region that is settled stops moving, then fill it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy, per_request
from dlm_samplers.state import SamplerState

END, HORIZONS, EXPLORED = "slow_fast.end", "slow_fast.horizons", "slow_fast.explored"


@dataclass(frozen=True)
class SlowFast(Policy):
    """Slow steps commit the u surest positions and watch the horizon, the last position with confidence tau_min; when it has
    stood still, fast steps commit every position up to it that reaches tau_high, and at least one, until none is left
    there (SlowFast sampling, arXiv:2506.10848).

    tau_min, tau_high: one number or one per request.
    window, variance: W and sigma^2; the horizon stands still when its last W values vary by less (population variance).
    most_slow: K_max, slow steps at most; after them the region ends at the mean of the last W horizons, rounded down.
    u: tokens of a slow step.

    Matches the paper's algorithm and settings. The authors' code differs from it: it always takes all slow steps (6, tau_min
    0.3, tau_high 0.9), commits in them as in fast ones, and in fast ones leaves the columns behind the region out of the
    forward, which is a cache and not a rule. Where no position reaches tau_min the horizon is the first mask. The method is
    meant for long blocks or block_length=None; a region ends with its block.

    Confidence is that of the drawn token: at temperature > 0 the horizon jitters with the draws, and most slow phases last
    K_max steps. Breaks where confidence does not fall with the distance from the prompt, as with sure end-of-text tokens
    far right: the region is then the whole block.
    """

    tau_min: float | tuple[float, ...] = 0.1
    tau_high: float | tuple[float, ...] = 0.85
    most_slow: int = 8
    window: int = 2
    variance: float = 1.0
    u: int = 1

    guarantee = Guarantee.APPROXIMATE
    promise = "a horizon that stands still bounds no joint error"

    def __post_init__(self) -> None:
        for name in ("tau_min", "tau_high"):
            if not all(0 < tau <= 1 for tau in per_request(getattr(self, name))):
                raise InvalidArgumentError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        if not 1 <= self.window <= self.most_slow:
            raise InvalidArgumentError(f"window must be in [1, most_slow = {self.most_slow}], got {self.window}")
        if not self.variance > 0:
            raise InvalidArgumentError(f"variance must be above 0 tokens^2, got {self.variance}")
        if self.u < 1:
            raise InvalidArgumentError(f"u must be at least 1, got {self.u}")

    def start(self, state: SamplerState) -> None:
        none = torch.zeros_like(state.length)
        state.memory[END] = none  # column at which the region ends; 0 in a slow phase
        state.memory[EXPLORED] = none
        state.memory[HORIZONS] = torch.zeros(len(none), self.window, device=none.device)  # newest last

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        active, column, confidence = state.active, state.column, scores.confidence
        end = state.memory[END]
        region = active & (column < end[:, None])
        fast = region.any(-1)
        anew = (end > 0) | (state.block_step == 0)  # where the row is not fast
        explored = torch.where(anew, 0, state.memory[EXPLORED]) + 1

        high, least = state.per_request(self.tau_high), state.per_request(self.tau_min)
        slow_choice = select_positions(confidence, active, at_least=self.u)
        fast_choice = select_positions(confidence, region, threshold=high)

        plausible = select_positions(confidence, active, threshold=least, at_least=0)
        first = active.int().argmax(-1)
        horizon = torch.where(plausible, column + 1, 0).amax(-1).maximum(first + 1)
        horizons = torch.cat([state.memory[HORIZONS][:, 1:], horizon[:, None].float()], dim=-1)
        settled = (explored >= self.window) & (horizons.var(-1, correction=0) < self.variance)
        mean = horizons.mean(-1).long()
        found = torch.where(settled, horizon, torch.where(explored >= self.most_slow, mean, 0))

        state.memory |= {
            END: torch.where(fast, end, found),
            EXPLORED: torch.where(fast, 0, explored),
            HORIZONS: horizons,
        }
        return torch.where(fast[:, None], fast_choice, slow_choice)
