"""What several stopping rules measure of a row."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_samplers.evaluation import Evaluation
from dlm_samplers.state import SamplerState
from dlm_samplers.sums import sum_where


def progress(state: SamplerState) -> Tensor:
    """float64 [B]: the share of the row's blanks that are filled, after the commit: step / steps of an even schedule."""
    return 1 - state.masked().sum(-1).double() / state.editable.sum(-1).clamp(min=1)


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """float64 [B]: mean over each row's positions `where`; NaN where a row has none, or a NaN among them."""
    mean = sum_where(values, where) / where.sum(-1)
    return mean.masked_fill((values.isnan() & where).any(-1), torch.nan)


def logit_gap(evaluation: Evaluation, never: tuple[int, ...]) -> Tensor:
    """float32 [B, L]: the highest logit minus the second highest, tokens that are `never` generated left out; inf where
    one token alone is possible, 0 where none is.

    From the logits, for probabilities cannot tell: in fp32 a gap of 17 leaves the second one nothing.
    """

    def gap(rows: Tensor, _: slice) -> Tensor:
        values, ids = rows.topk(min(2 + len(never), rows.shape[-1]), dim=-1)
        for token in never:
            values = values.masked_fill(ids == token, -torch.inf)
        values = torch.nn.functional.pad(values, (0, 1), value=-torch.inf)
        best, second = values.float().topk(2, dim=-1).values.unbind(-1)
        return torch.where(best == second, 0, best - second)

    return evaluation.by_position(gap)
