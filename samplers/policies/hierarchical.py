"""dInfer's hierarchical decoding: divide every run of masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy, per_request
from dlm_samplers.state import SamplerState


@dataclass(frozen=True)
class Hierarchical(Policy):
    """Commit the surest position of every run of adjacent masks if its confidence is above tau_low, every position above tau,
    and the surest of all in any case (hierarchical decoding of dInfer, arXiv:2510.08666).

    A run splits in two where it commits, so a block of B tokens can be done in about log2 B steps with few neighbours
    committed at once.

    tau, tau_low: one number or one per request.

    Matches dInfer's `HierarchyDecoder`, for one row at a time there, save that of equal confidences in a run it commits all,
    here the leftmost. Its variant that takes tokens back is a remasking rule. Confidence is that of the drawn token: at
    temperature > 0 a run may be led by an unlikely draw of a sure position. Breaks where distant positions depend on each
    other (permutations, counting): tau_low lets half-sure ones through.
    """

    tau: float | tuple[float, ...] = 0.9
    tau_low: float | tuple[float, ...] = 0.4

    guarantee = Guarantee.APPROXIMATE
    promise = "distance between the tokens of a step bounds no joint error"

    def __post_init__(self) -> None:
        for name in ("tau", "tau_low"):
            if not all(0 < tau <= 1 for tau in per_request(getattr(self, name))):
                raise InvalidArgumentError(f"{name} must be in (0, 1], got {getattr(self, name)}")

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        active, confidence = state.active, scores.confidence
        rank = confidence.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)  # no two are equal
        starts = active & ~torch.nn.functional.pad(active, (1, 0))[:, :-1]
        run = torch.where(active, starts.cumsum(-1), 0)  # 0 gathers all that is not masked
        last = torch.full_like(rank, state.width)
        best = torch.cat([last, last[:, :1]], dim=-1).scatter_reduce(1, run, rank, "amin").gather(1, run)
        leads = active & (rank == best)
        low, high = state.per_request(self.tau_low), state.per_request(self.tau)
        led = select_positions(confidence, leads, threshold=low, strict=True, at_least=0)
        return led | select_positions(confidence, active, threshold=high, strict=True)
