"""Fixed-budget unmasking in one of four orders: the published samplers of LLaDA, Dream and MaskGIT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, keyed_uniform, select_positions
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Outlook, Policy, gap
from dlm_samplers.schedules import Linear, Schedule
from dlm_samplers.state import SamplerState

Order = Literal["confidence", "margin", "entropy", "random", "left_to_right"]

ORDER_NOISE_STREAM = 2


@dataclass(frozen=True)
class FixedQuota(Policy):
    """Commit the best positions of a fixed budget (LLaDA, arXiv:2502.09992; Dream, arXiv:2508.15487; MaskGIT, 2202.04200).

    order: "confidence" (LLaDA low_confidence, Dream maskgit_plus), "margin" (Dream topk_margin), "entropy", "random",
        "left_to_right".
    schedule: budget of a step, from `generate(steps=...)`.
    tokens_per_step: a constant budget instead of a schedule.
    order_temperature: Dream's alg_temp; above 0 positions are drawn without replacement with probability proportional
        to exp(score / order_temperature), by the Gumbel top-k trick.
    """

    order: Order = "confidence"
    schedule: Schedule = field(default_factory=Linear)
    tokens_per_step: int | None = None
    order_temperature: float = 0.0

    guarantee = Guarantee.PATH_EXACT
    promise = "the published sampler itself; steps whose quota is 0 cost no forward"

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise InvalidArgumentError(f"order must be one of {get_args(Order)}, got {self.order!r}")
        if self.tokens_per_step is not None and self.tokens_per_step < 1:
            raise InvalidArgumentError(f"tokens_per_step must be at least 1, got {self.tokens_per_step}")
        if not self.order_temperature >= 0:
            raise InvalidArgumentError(f"order_temperature must be >= 0, got {self.order_temperature}")

    @property
    def scheduled(self) -> bool:  # type: ignore[override]
        return self.tokens_per_step is None

    @property
    def keyed_by_step(self) -> bool:  # type: ignore[override]
        return self.order == "confidence"  # the one score that looks at the sampled token

    @property
    def foresees(self) -> bool:  # type: ignore[override]
        return self.tokens_per_step is None

    @property
    def order_is_fixed(self) -> bool:
        """True when the order of commits is known before any token is."""
        return self.order in ("random", "left_to_right") and self.order_temperature == 0

    def candidates(self, state: SamplerState) -> Tensor:
        if self.tokens_per_step is not None:
            return state.active
        return state.active & (self.schedule.quota(state) > 0)[:, None]

    def outlook(self, scores: TokenScores, state: SamplerState) -> Outlook | None:
        per_step = self.schedule.constant(state) if self.tokens_per_step is None else self.tokens_per_step
        if per_step is None or self.order_temperature > 0:
            return None
        return Outlook(self.preference(scores, state), per_step, self.order_is_fixed)

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        quota = self.schedule.quota(state) if self.tokens_per_step is None else self.tokens_per_step
        return select_positions(self.preference(scores, state), state.active, quota=quota, at_least=0)

    def leeway(self, scores: TokenScores, chosen: Tensor, state: SamplerState) -> Tensor | None:
        if self.order_is_fixed:
            return torch.full_like(scores.confidence[:, 0], torch.inf)
        if self.order_temperature > 0:
            return None
        return gap(self.preference(scores, state), chosen, state.active & ~chosen)

    def preference(self, scores: TokenScores, state: SamplerState) -> Tensor:
        if self.order == "random":
            # Keyed without the step: the order is one random permutation, drawn before any token is known.
            return keyed_uniform(state.seed[:, None], state.row_ids, 0)
        if self.order == "left_to_right":
            return -state.column.float().expand_as(state.tokens)
        score = {"confidence": scores.confidence, "margin": scores.margin, "entropy": -scores.entropy}[self.order]
        if self.order_temperature == 0:
            return score
        u = keyed_uniform(state.seed[:, None], state.row_ids, state.step[:, None], stream=ORDER_NOISE_STREAM)
        return score / self.order_temperature - torch.log(-torch.log1p(-u))
