"""KLASS: sure and settled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm_kernels import (
    InvalidArgumentError,
    TokenScores,
    TopK,
    gather_rows,
    scatter_rows_,
    select_positions,
    topk_kl,
)
from dlm_samplers.evaluation import Evaluation, by_position
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy, column, per_request
from dlm_samplers.state import SamplerState

IDS, LOG_PROBS, STREAK = "kl_stable.ids", "kl_stable.log_probs", "kl_stable.streak"


@dataclass(frozen=True)
class KLStable(Policy):
    """Commit every position that is sure and settled: confidence above tau_c, and a distribution that moved by less than
    epsilon nats in each of the last H steps; where no position of a row is, the u surest (KLASS, arXiv:2511.05664).

    tau_c, epsilon: one number or one per request; the authors tune both to the task, 0.6 to 0.9 and 0.001 to 0.015.
    history: H.
    u: the authors' number of tokens a step, length / steps.
    k: likeliest tokens of a position that are kept from step to step, instead of its whole distribution.

    The divergence is KL(before || now) with all but the k tokens merged (`dlm_kernels.topk_kl`), which cannot exceed the full
    one; the paper takes KL(now || before). They agree to second order where epsilon matters. History starts with the block:
    a block's first step compares with nothing, so nothing is settled before its step H + 1. The authors' code reads the
    whole canvas in every step and carries history into the next block, where it commits one step sooner; the rows of the
    block, [B, block_length, V], are all that is read here.

    At temperature > 0 the divergence is that of the untempered distributions, the confidence that of the drawn token, which
    may fall below tau_c where the likeliest token does not. The authors' code perturbs the logits first and compares noise.
    Breaks where the model is settled on marginals that contradict each other, and with tau_c or epsilon of another task.
    """

    tau_c: float | tuple[float, ...] = 0.9
    epsilon: float | tuple[float, ...] = 0.01
    history: int = 2
    u: int = 1
    k: int = 8

    guarantee = Guarantee.APPROXIMATE
    promise = "a settled marginal is no settled joint"
    needs_logits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not all(0 < tau <= 1 for tau in per_request(self.tau_c)):
            raise InvalidArgumentError(f"tau_c must be in (0, 1], got {self.tau_c}")
        if not all(epsilon > 0 for epsilon in per_request(self.epsilon)):
            raise InvalidArgumentError(f"epsilon must be above 0 nats, got {self.epsilon}")
        for name in ("history", "u", "k"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")

    def start(self, state: SamplerState) -> None:
        shape, device = state.tokens.shape, state.tokens.device
        state.position_memory[IDS] = torch.zeros(*shape, self.k, dtype=torch.int64, device=device)
        state.position_memory[LOG_PROBS] = torch.zeros(*shape, self.k + 1, device=device)
        state.position_memory[STREAK] = torch.zeros(shape, dtype=torch.int64, device=device)  # 0: not seen yet

    def observe(self, evaluation: Evaluation, state: SamplerState) -> TokenScores:
        streak = state.position_memory[STREAK]
        settled = self._divergence(evaluation, state) < column(state.per_request(self.epsilon))
        # 1 either way where it was 0, as nothing was there to compare with.
        state.position_memory[STREAK] = torch.where(settled, streak + 1, 1) * state.active
        return evaluation.scores

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        settled = state.active & (state.position_memory[STREAK] > self.history)
        tau = state.per_request(self.tau_c)
        ready = select_positions(scores.confidence, settled, threshold=tau, strict=True, at_least=0)
        surest = select_positions(scores.confidence, state.active, at_least=self.u)
        return torch.where(ready.any(-1, keepdim=True), ready, surest)

    def _divergence(self, evaluation: Evaluation, state: SamplerState) -> Tensor:
        """[B, L]: KL to the step before, of the positions of the block. Stores what the next step compares with.

        What is stored belongs to rows of the logits, which predict position row + shift.
        """
        logits, shift = evaluation.logits, evaluation.shift
        ids, log_probs = state.position_memory[IDS], state.position_memory[LOG_PROBS]
        width = state.width if state.block_length is None else min(state.block_length, state.width)
        if width == state.width:
            now = topk_kl(logits, self.k, before=TopK(log_probs[..., 0], ids, log_probs))
            state.position_memory |= {IDS: now.ids, LOG_PROBS: now.log_probs}
            kl = now.kl
        else:
            first = state.block_end - width - shift  # rows before the first are left out on both ways
            rows = first[:, None] + torch.arange(width, device=first.device)
            ids_before, before = gather_rows(ids, rows), gather_rows(log_probs, rows)
            now = topk_kl(gather_rows(logits, rows), self.k, before=TopK(before[..., 0], ids_before, before))
            kl = torch.zeros_like(log_probs[..., 0])
            for target, values in ((ids, now.ids), (log_probs, now.log_probs), (kl, now.kl)):
                scatter_rows_(target, rows, values)
        return by_position(kl, shift, lambda aligned, _: aligned)
