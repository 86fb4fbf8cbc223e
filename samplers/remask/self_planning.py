"""P2 self-planning: the model's own likelihood decides which positions stay written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy
from dlm_samplers.remask.base import Remask, Revocation, revisable
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler

KEPT = "self_planning.kept"


@dataclass(frozen=True)
class SelfPlanning(Policy, Remask):
    """Of a block of n positions, step s of S leaves the best n - floor(n (1 - s / S)) written and masks the others
    (P2 with self-planning, arXiv:2502.03540; kappa linear). It brings the policy itself: give `remask=` alone.

    A masked position has the score log p(proposed token), a written one eta * log p(token that stands). Scores are at most
    0, so a small eta protects what is written: eta = 0 never takes a token back, eta = 1 compares as equals, above 1 tokens
    are taken back more readily.

    `p2_sampling` of the released code scores a written position by a token drawn anew instead of the one that stands, and
    plans the whole sequence at once: `block_length=None` does that too.
    """

    eta: float = 1.0

    guarantee = Guarantee.APPROXIMATE
    promise = "on a schedule, which ends the loop; the planner is the denoiser itself, a heuristic"
    scheduled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.eta < float("inf"):
            raise InvalidArgumentError(f"eta must be >= 0 and finite, got {self.eta}")

    @property
    def policy(self) -> SelfPlanning:
        return self

    def check(self, sampler: Sampler) -> None:
        if sampler.policy is not self or sampler.remask is not self:
            raise InvalidArgumentError(
                f"SelfPlanning decides by one ranking what commits and what is taken back: give it as remask= and leave policy "
                f"out; got policy={sampler.policy!r} and remask={sampler.remask!r}"
            )

    def start(self, state: SamplerState) -> None:
        state.position_memory[KEPT] = torch.zeros_like(state.active)

    def observe(self, evaluation: Evaluation, state: SamplerState) -> TokenScores:
        """Ranks the block's positions, written and masked, and remembers which ones this step leaves written."""
        steps = state.steps_per_block
        assert steps is not None
        written = revisable(state)
        standing = torch.where(written, state.tokens, evaluation.scores.token)
        score = evaluation.log_probability(standing)
        score = torch.where(written, self.eta * score.clamp(min=torch.finfo(score.dtype).min), score)
        planned = written | state.active
        n = planned.sum(-1)
        masked = n * (steps - 1 - state.block_step).clamp(min=0) // steps
        state.position_memory[KEPT] = select_positions(score, planned, quota=n - masked, at_least=0)
        return evaluation.scores

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return state.active & state.position_memory[KEPT]

    def revoke(self, evaluation: Evaluation, chosen: Tensor, state: SamplerState) -> Revocation:
        dropped = revisable(state) & ~state.position_memory[KEPT]
        return Revocation(confidence=evaluation.scores.confidence, probability=dropped.float())
