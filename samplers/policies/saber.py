"""Saber: a threshold that follows the confidence of what is already written."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy
from dlm_samplers.state import SamplerState

CONFIDENCE = "saber.confidence"
FIXED_POINT = 2.0**40
"""Confidences are summed as integers, so that the mean does not depend on the width of the batch."""


@dataclass(frozen=True)
class Saber(Policy):
    """Commit every position more confident than the tokens committed so far were on average when they were committed; the
    n best where fewer are, as in the first step (Saber, arXiv:2510.18165). Its remasking is `remask.ConfidenceDrop`.

    The average is over the row's tokens that stand. The released code (`generate_with_saber`) keeps a token's share of the
    average after it is taken back, until the position is committed again. Where a model's confidence saturates, nothing
    exceeds the average and every step commits n, there as here.
    """

    n: int = 2

    guarantee = Guarantee.APPROXIMATE
    promise = "the threshold follows the model's confidence and bounds no joint error"

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise InvalidArgumentError(f"n must be an int >= 1, got {self.n!r}")

    def start(self, state: SamplerState) -> None:
        state.position_memory[CONFIDENCE] = torch.zeros_like(state.tokens, dtype=torch.float32)

    def observe(self, evaluation: Evaluation, state: SamplerState) -> TokenScores:
        """Remembers the confidence of every position that is still masked: what stays is that of its commit."""
        still_open = evaluation.scored & state.masked()
        memory = state.position_memory
        memory[CONFIDENCE] = torch.where(still_open, evaluation.scores.confidence, memory[CONFIDENCE])
        return evaluation.scores

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        committed = state.editable & (state.tokens != state.mask_id)
        at_commit = (state.position_memory[CONFIDENCE].double() * FIXED_POINT).long()
        count = committed.sum(-1)
        mean = (at_commit * committed).sum(-1) / FIXED_POINT / count
        threshold = torch.where(count > 0, mean, 1.0).float()
        return select_positions(scores.confidence, state.active, threshold=threshold, strict=True, at_least=self.n)
