"""CreditDecoding: what a position said before counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy, per_request
from dlm_samplers.state import SamplerState

IDS, CREDIT = "credit.ids", "credit.credit"


@dataclass(frozen=True)
class Credit(Policy):
    """Threshold decoding on logits that remember: in every step the likeliest token of a masked position earns c^gamma, all
    credit of the position fades by beta, and alpha log(1 + credit) is added to its logits (CreditDecoding, arXiv:2510.06133).

    tau: threshold on the confidence of the raised logits, one number or one per request.
    alpha, gamma, beta: strength, exponent of the confidence c, decay.
    k: credited tokens a position remembers; a new one takes the place of that with least credit. With k the number of
        different likeliest tokens that a position sees, this is the rule on the whole vocabulary.

    Matches dInfer's `CreditThresholdParallelDecoder` on k ids instead of block x V: only their logits change, so the raised
    argmax is one of them and the new normaliser is the old one plus their changes. dInfer credits the mask token too, which is
    never generated here, and clears credit when the canvas is full; here it goes when the position is no longer masked.

    At temperature > 0 credit still goes to the likeliest token (a second pass over the active rows finds it); the token is
    drawn from the model's own distribution, its confidence is that under the raised logits at temperature 1. dInfer draws from
    the raised logits, which pulls samples towards early guesses. Breaks by entrenching an early wrong guess.
    """

    tau: float | tuple[float, ...] = 0.9
    alpha: float = 0.7
    gamma: float = 0.2
    beta: float = 0.8
    k: int = 8

    guarantee = Guarantee.APPROXIMATE
    promise = "past confidence in a token is no bound on its error"
    needs_logits: ClassVar[bool] = True
    needs_greedy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not all(0 < tau <= 1 for tau in per_request(self.tau)):
            raise InvalidArgumentError(f"tau must be in (0, 1], got {self.tau}")
        for name in ("alpha", "gamma"):
            if not getattr(self, name) >= 0:
                raise InvalidArgumentError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0 <= self.beta <= 1:
            raise InvalidArgumentError(f"beta must be in [0, 1], got {self.beta}")
        if self.k < 1:
            raise InvalidArgumentError(f"k must be at least 1, got {self.k}")

    def start(self, state: SamplerState) -> None:
        shape, device = (*state.tokens.shape, self.k), state.tokens.device
        state.position_memory[IDS] = torch.zeros(shape, dtype=torch.int64, device=device)
        state.position_memory[CREDIT] = torch.zeros(shape, device=device)  # 0: a free place

    def observe(self, evaluation: Evaluation, state: SamplerState) -> TokenScores:
        scores, greedy = evaluation.scores, evaluation.greedy
        assert greedy is not None
        ids, credit = self._earn(greedy, state)
        # Doubles: the last bit of an fp32 exp or log depends on where in a vector it is computed, that is, on the batch.
        logsumexp = greedy.logsumexp.double()
        logits = evaluation.by_position(lambda rows, at: rows.gather(-1, ids[:, at])).double()  # [B, L, k]
        bonus = self.alpha * credit.double().log1p()
        grown = (logits - logsumexp[..., None]).exp() * bonus.expm1()
        normaliser = logsumexp + grown.sum(-1).log1p()
        if not evaluation.drawn:
            raised = (logits + bonus).masked_fill(credit == 0, -torch.inf)
            logit = raised.amax(-1)
            token = ids.masked_fill(raised < logit[..., None], torch.iinfo(torch.int64).max).amin(-1)
        else:
            token = scores.token
            drawn = evaluation.by_position(lambda rows, at: rows.gather(-1, token[:, at, None])).double()
            logit = drawn[..., 0] + (bonus * (ids == token[..., None])).sum(-1)
        known = state.active & (credit > 0).any(-1)
        confidence = torch.where(known, (logit - normaliser).exp().float(), scores.confidence)
        return scores._replace(token=torch.where(known, token, scores.token), confidence=confidence)

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        return select_positions(scores.confidence, state.active, threshold=state.per_request(self.tau))

    def _earn(self, greedy: TokenScores, state: SamplerState) -> tuple[Tensor, Tensor]:
        """Ids and credit [B, L, k] of the active positions after this step; none of the others."""
        ids, credit = state.position_memory[IDS], state.position_memory[CREDIT] * self.beta
        token = greedy.token[..., None]
        known = ids == token
        place = torch.where(known.any(-1), known.int().argmax(-1), credit.argmin(-1))
        here = place[..., None] == torch.arange(self.k, device=place.device)
        earned = greedy.confidence.double().pow(self.gamma).float()[..., None]
        credit = torch.where(here, credit * known + earned, credit) * state.active[..., None]
        ids = torch.where(here, token, ids)
        state.position_memory |= {IDS: ids, CREDIT: credit}
        return ids, credit
