"""Confidence order, decided for several commits at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Outlook, Policy
from dlm_samplers.state import SamplerState

RANK = "frozen_confidence.rank"

Certainty = Literal["margin", "entropy"]


@dataclass(frozen=True)
class FrozenConfidence(Policy):
    """Commit one position a step, in an order that is fixed for `every` commits at a time by how sure the model is then.

    At every=1 it is `FixedQuota(order, tokens_per_step=1)`. Above that the next positions are known before their tokens are,
    which is what `DraftVerify` needs to foresee them; the tokens themselves are always drawn from the current canvas.

    every: commits from one look at the order to the next; the start of a block is one too.
    order: "margin" (highest minus second highest probability) or "entropy". Both describe the whole distribution, not the
        token drawn from it, at any temperature: the order then never depends on the noise of a token, which may be keyed
        without the step. (The confidence of the drawn token would not do at temperature > 0.)
    """

    every: int = 8
    order: Certainty = "margin"

    guarantee = Guarantee.APPROXIMATE
    promise = "an order of its own, up to `every` commits behind the confidence order; measured only"
    keyed_by_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise InvalidArgumentError(f"every must be an int >= 1, got {self.every!r}")
        if self.order not in get_args(Certainty):
            raise InvalidArgumentError(f"order must be one of {get_args(Certainty)}, got {self.order!r}")

    def start(self, state: SamplerState) -> None:
        state.position_memory[RANK] = torch.full_like(state.tokens, self.every)

    def candidates(self, state: SamplerState) -> Tensor:
        rank = self._rank(state)
        return state.active & (
            rank == rank.amin(-1, keepdim=True)
        )  # all active ones where the order is to be fixed anew

    def observe(self, evaluation: Evaluation, state: SamplerState) -> TokenScores:
        scores = evaluation.scores
        due = (self._rank(state) == self.every).all(-1, keepdim=True)
        ranked = (
            self._certainty(scores).masked_fill(~state.active, -torch.inf).argsort(descending=True, stable=True)
        )  # ties: lowest first
        rank = ranked.argsort().clamp(max=self.every).masked_fill(~state.active, self.every)
        state.position_memory[RANK] = torch.where(due, rank, state.position_memory[RANK])
        return scores

    def outlook(self, scores: TokenScores, state: SamplerState) -> Outlook:
        rank = self._rank(state)
        frozen = rank < self.every
        # The fixed order first, which is above any certainty; then, as a guess at the orders fixed later, the certainties.
        order = torch.where(frozen, 1.0 + self.every - rank, self._certainty(scores))
        left = frozen.sum(-1)[:, None, None]

        def memory(place: Tensor, steps: Tensor) -> dict[str, Tensor]:
            steps = steps[None, :, None]
            since = left + torch.div(steps - left - 1, self.every, rounding_mode="floor") * self.every
            ahead = place[:, None] - since
            later = torch.where((ahead >= 0) & (ahead < self.every), ahead, self.every)
            return {RANK: torch.where(steps <= left, state.position_memory[RANK][:, None], later)}

        return Outlook(order.masked_fill(~state.active, -torch.inf), 1, settled=True, memory=memory)

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        rank = self._rank(state)
        return state.active & (rank == rank.amin(-1, keepdim=True))

    def leeway(self, scores: TokenScores, chosen: Tensor, state: SamplerState) -> Tensor:
        just_fixed = (state.active & (self._rank(state) == 0)).any(-1)
        certainty = self._certainty(scores).masked_fill(~state.active, -torch.inf).sort(descending=True).values
        steps_down = (certainty[:, :-1] - certainty[:, 1:]).nan_to_num(torch.inf)[:, : self.every]
        return torch.where(just_fixed & (state.width > 1), steps_down.amin(-1), torch.inf)

    def _certainty(self, scores: TokenScores) -> Tensor:
        return scores.margin if self.order == "margin" else -scores.entropy

    def _rank(self, state: SamplerState) -> Tensor:
        """int64 [B, L]: place in the fixed order of the active positions that have one, `every` elsewhere."""
        return state.position_memory[RANK].masked_fill(~state.active, self.every)
