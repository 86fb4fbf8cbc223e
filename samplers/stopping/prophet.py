"""Prophet: stop when the answer is decided."""

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
from dlm_samplers.stopping.measures import logit_gap, mean_where, progress


@dataclass(frozen=True)
class Prophet(StoppingRule):
    """Fill all masks once the mean top-2 logit gap of the answer reaches a threshold: `early` in the first third of the
    steps, `middle` in the second, `late` in the last (Prophet, arXiv:2508.19982).

    answer_start: where the answer starts in the generated region. One number, or one per request.
    answer_length: positions of the answer, those that the region still holds.

    Matches `generate_earlyexit.py` of the authors' repository as others carry it on: all positions of the answer count,
    filled or masked, and progress is step / steps, here as the share of blanks filled, which is the same on an even schedule.
    Where the answer stands must be known beforehand, which the authors arrange by putting "The answer is" at a fixed place:
    give that text as part of the prompt, between blanks. A row without such a position never stops by this rule.
    """

    answer_start: int | tuple[int, ...]
    answer_length: int = 5
    early: float = 7.5
    middle: float = 5.0
    late: float = 2.5

    guarantee = Guarantee.APPROXIMATE
    promise = "measures the answer alone; the rest of the text is filled however uncertain it is"
    fills: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        starts = (self.answer_start,) if isinstance(self.answer_start, int) else self.answer_start
        if not all(start >= 0 for start in starts):
            raise InvalidArgumentError(f"answer_start must be >= 0, got {self.answer_start}")
        if self.answer_length < 1:
            raise InvalidArgumentError(f"answer_length must be at least 1, got {self.answer_length}")

    def stop(self, state: SamplerState, spec: ModelSpec, evaluation: Evaluation) -> Tensor:
        start = state.per_request(self.answer_start)
        start = start.long() if isinstance(start, Tensor) else start
        start = (state.prompt_length + start)[:, None]
        answer = (state.column >= start) & (state.column < start + self.answer_length) & state.valid
        p = progress(state)
        threshold = torch.where(p < 0.33, self.early, torch.where(p < 0.67, self.middle, self.late))
        return mean_where(logit_gap(evaluation, spec.never), answer) >= threshold
