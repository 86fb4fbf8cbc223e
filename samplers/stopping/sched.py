"""SchED: stop when the whole span is decided, by a measure that relaxes with progress."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.models import ModelSpec
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping.base import StoppingRule
from dlm_samplers.stopping.measures import logit_gap, mean_where, progress

Curve = Literal["linear", "cosine", "exponential"]


@dataclass(frozen=True)
class SchED(StoppingRule):
    """Fill all masks once their mean top-2 logit gap reaches tau(p), p the row's progress, and no proposal has changed since
    the forward before (SchED, arXiv:2512.02892).

    curve: how tau falls from tau_high to tau_low: "linear"; "cosine"; "exponential", as exp(-k p), which stops short of
        tau_low. k belongs to it alone.
    settled: ask that the proposals of all masks are those of the forward before, as the published code does by default
        (patience_steps=0, max_change_ratio=0).

    Matches `dream_sampling/sched.py` of the authors' repository, with stat="mean", answer_region="all" and
    average_over_masked; its curves and numbers are the defaults here. There p is (t - 1) / (T - 1) in step t of T, here t / T
    or, for samplers without a number of steps, the share of blanks filled. There a batch stops as one, here every row for
    itself. Above temperature 0 what is filled, and compared, are this forward's samples, there the likeliest tokens.
    """

    curve: Curve = "cosine"
    tau_high: float = 7.5
    tau_low: float = 2.5
    k: float = 4.0
    settled: bool = True

    guarantee = Guarantee.APPROXIMATE
    promise = "a mean over the span says nothing of its least certain position, which is filled with the rest"
    fills: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.curve not in get_args(Curve):
            raise InvalidArgumentError(f"curve must be one of {get_args(Curve)}, got {self.curve!r}")
        if not 0 <= self.tau_low <= self.tau_high:
            raise InvalidArgumentError(
                f"tau_low and tau_high must have 0 <= tau_low <= tau_high, got {self.tau_low} and {self.tau_high}"
            )
        if not self.k > 0:
            raise InvalidArgumentError(f"k must be above 0, got {self.k}")

    def start(self, state: SamplerState) -> None:
        state.position_memory["sched.token"] = torch.full_like(state.tokens, -1)

    def stop(self, state: SamplerState, spec: ModelSpec, evaluation: Evaluation) -> Tensor:
        token = evaluation.scores.token
        changed = (token != state.position_memory["sched.token"]) & evaluation.masked
        state.position_memory["sched.token"] = torch.where(evaluation.masked, token, -1)
        sure = mean_where(logit_gap(evaluation, spec.never), evaluation.masked) >= self.threshold(progress(state))
        return sure & ~changed.any(-1) if self.settled else sure

    def threshold(self, p: Tensor) -> Tensor:
        """tau(p), of p's shape."""
        share = {
            "linear": lambda: 1 - p,
            "cosine": lambda: 0.5 * (1 + torch.cos(math.pi * p)),
            "exponential": lambda: torch.exp(-self.k * p),
        }[self.curve]()
        return self.tau_low + (self.tau_high - self.tau_low) * share
