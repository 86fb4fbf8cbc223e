"""Saber's backtracking: what later tokens made less likely is taken back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.remask.base import Remask, Revocation, revisable
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler

PROBABILITY = "confidence_drop.probability"


@dataclass(frozen=True)
class ConfidenceDrop(Remask):
    """Take back the tokens whose probability fell most since the forward before (Saber, arXiv:2510.18165).

    A step that commits k tokens takes back max(floor(n / 2), ceil(k / mu)) of earlier ones, always fewer than k and none
    once the block is full; as in the released code (`generate_with_saber`, mu = 8) also where no probability fell.

    Differences from that code, each as in the paper: the probability is that of the token that stands there, not that of
    the likeliest one; tokens committed in this very step are left alone, for they have not met their new neighbours yet.
    The model sees the token that it is asked about, so the signal is weak where the model copies its input.
    """

    n: int = 2
    mu: int = 8

    guarantee = Guarantee.APPROXIMATE
    promise = "a step takes back fewer tokens than it commits; what is taken back is a heuristic"

    def __post_init__(self) -> None:
        for name, least in (("n", 0), ("mu", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidArgumentError(f"{name} must be an int >= {least}, got {value!r}")

    def check(self, sampler: Sampler) -> None:
        if sampler.policy.scheduled:
            raise InvalidArgumentError(
                f"ConfidenceDrop takes back tokens that the schedule of {type(sampler.policy).__name__} has no steps left "
                "to commit again; use a policy without a schedule, such as Saber() or FixedQuota(tokens_per_step=...)"
            )

    def start(self, state: SamplerState) -> None:
        state.position_memory[PROBABILITY] = torch.zeros_like(state.tokens, dtype=torch.float32)

    def revoke(self, evaluation: Evaluation, chosen: Tensor, state: SamplerState) -> Revocation:
        standing = torch.where(revisable(state), state.tokens, evaluation.scores.token)
        now = evaluation.log_probability(standing).exp()
        drop = now - state.position_memory[PROBABILITY]
        state.position_memory[PROBABILITY] = now
        committed = chosen.sum(-1)
        quota = ((committed + self.mu - 1) // self.mu).clamp(min=self.n // 2)
        full = ~(state.active & ~chosen).any(-1)
        return Revocation(confidence=drop, quota=torch.where(full, 0, quota))
