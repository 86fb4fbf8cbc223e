"""DiffusionGemma's rule: stop when the proposals stand still and their entropy is low."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.models import ModelSpec
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping.base import StoppingRule
from dlm_samplers.stopping.measures import mean_where


@dataclass(frozen=True)
class StableAndConfident(StoppingRule):
    """Fill all masks once their proposals equal those of each of the last `stability_threshold` forwards and their mean
    entropy is below `confidence_threshold` nats (`StableAndConfidentStoppingCriteria` of transformers' DiffusionGemma).

    There the whole canvas is proposed anew in every step; here what is filled counts as settled, so both conditions are
    about the masks. The entropy is that of the token scores, there of the tempered logits. Above temperature 0 proposals are
    samples, which stand still later than the likeliest tokens do.
    """

    stability_threshold: int = 1
    confidence_threshold: float = 0.005

    guarantee = Guarantee.BOUNDED
    promise = "the fill diverges from the joint by less than confidence_threshold nats a token, if the marginals are consistent"
    fills: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.stability_threshold < 0:
            raise InvalidArgumentError(f"stability_threshold must be >= 0 forwards, got {self.stability_threshold}")
        if not self.confidence_threshold > 0:
            raise InvalidArgumentError(f"confidence_threshold must be above 0 nats, got {self.confidence_threshold}")

    def start(self, state: SamplerState) -> None:
        state.position_memory["stable.token"] = torch.full_like(state.tokens, -1)
        state.position_memory["stable.times"] = torch.zeros_like(state.tokens)

    def stop(self, state: SamplerState, spec: ModelSpec, evaluation: Evaluation) -> Tensor:
        memory, masked = state.position_memory, evaluation.masked
        token = evaluation.scores.token
        times = torch.where(token == memory["stable.token"], memory["stable.times"] + 1, 0)
        memory["stable.token"], memory["stable.times"] = torch.where(masked, token, -1), times
        stable = (times >= self.stability_threshold) | ~masked
        return stable.all(-1) & (mean_where(evaluation.scores.entropy, masked) < self.confidence_threshold)
