"""ReMDM: the ancestral sampler of a process whose tokens may become masks again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies import AncestralUnmask
from dlm_samplers.policies.base import per_request
from dlm_samplers.remask.base import Remask, Revocation, revisable
from dlm_samplers.schedules import TimeGrid
from dlm_samplers.state import SamplerState
from dlm_samplers.sums import sum_where

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler

Kind = Literal["cap", "rescale", "conf", "loop"]

PUBLISHED_ETA = {"cap": 0.008, "rescale": 0.015, "conf": 1.0, "loop": 0.02}
"""For 1024 steps; fewer steps want more."""


@dataclass(frozen=True)
class ReMDM(Remask):
    """From t to s a token becomes a mask with probability sigma, and a mask commits with
    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), which makes up for it (ReMDM, arXiv:2503.00307).

    sigma is at most sigma_max = min(1, (1 - alpha_s) / alpha_t), and
    kind: "cap": min(eta, sigma_max).
        "rescale": eta sigma_max.
        "conf": eta sigma_max softmax(-psi), over the row's tokens, psi a token's probability when it committed.
        "loop": cap's between t_on and t_off, where alpha stands still at alpha_on; 0 before and after.
    eta: one number or one per request; default: the published one for 1024 steps.
    schedule: the grid of noise levels. alpha is 1 - t, for "loop" linear up to alpha_on, level, and linear from it.
    t_on, t_off, alpha_on: of "loop".

    It brings the policy, `AncestralUnmask` with that probability, so leave `policy` out. The share of masks after each step
    is that of the process without remasking, in expectation; not so for "conf", whose masks commit as if sigma were 0. With
    sigma = 0 it is `AncestralUnmask`. A grid is spent on each block, to its end; block_length=None gives the published one.

    Matches `_ddpm_caching_update` of the authors' repository, but for the steps of "loop" that cross t_on or t_off: there
    alpha jumps to the next piece, here it is continuous. That code has eps = 1e-5 and one more forward, which fills the
    masks left; here the last step leads to 0 and fills them.
    """

    kind: Kind
    eta: float | tuple[float, ...] | None = None
    schedule: TimeGrid = field(default_factory=TimeGrid)
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    guarantee = Guarantee.EXACT
    promise = "ReMDM's T-step sampler itself, which keeps the noise levels of its grid (conf: it does not)"
    scheduled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InvalidArgumentError(f"kind must be one of {get_args(Kind)}, got {self.kind!r}")
        if self.eta is not None and not all(0 <= eta <= 1 for eta in per_request(self.eta)):
            raise InvalidArgumentError(f"eta must be in [0, 1], got {self.eta}")
        if not 0 < self.t_off <= self.t_on < 1:
            raise InvalidArgumentError(
                f"t_on and t_off must have 0 < t_off <= t_on < 1, got {self.t_on} and {self.t_off}"
            )
        if not 0 < self.alpha_on < 1:
            raise InvalidArgumentError(f"alpha_on must be in (0, 1), got {self.alpha_on}")

    @property
    def policy(self) -> RemaskedUnmask:
        return RemaskedUnmask(schedule=self.schedule, remask=self)

    def check(self, sampler: Sampler) -> None:
        if sampler.policy != self.policy:
            raise InvalidArgumentError(
                "ReMDM decides by one law what commits and what is taken back, AncestralUnmask with its own probabilities: "
                f"leave policy out, and give a grid as ReMDM(schedule=...); got policy={sampler.policy!r}"
            )

    def start(self, state: SamplerState) -> None:
        state.spends_all_steps = True
        if self.kind == "conf":
            state.position_memory["remdm.psi"] = torch.zeros(state.tokens.shape, device=state.tokens.device)

    def scored(self, state: SamplerState) -> Tensor | None:
        return None  # what is taken back does not depend on this forward

    def revoke(self, evaluation: Evaluation, chosen: Tensor, state: SamplerState) -> Revocation:
        sigma = self.sigma(state)
        if self.kind == "conf":
            psi = state.position_memory["remdm.psi"]
            state.position_memory["remdm.psi"] = torch.where(chosen, evaluation.scores.confidence, psi)
        return Revocation(torch.zeros_like(evaluation.scores.confidence), probability=sigma)

    def sigma(self, state: SamplerState) -> Tensor:
        """float32 [B, 1], for "conf" [B, L]: with which a token becomes a mask in this step."""
        sigma = self._row_sigma(state)[:, None]
        if self.kind != "conf":
            return sigma
        tokens = revisable(state)
        weight = torch.exp(-state.position_memory["remdm.psi"]) * tokens
        return (sigma * weight / sum_where(weight, tokens).clamp(min=1e-9)[:, None]).float()

    def commit_probability(self, state: SamplerState) -> Tensor:
        """float32 [B]: with which a mask commits in this step."""
        m_t, m_s = self.mask_shares(state)
        if self.kind == "conf":
            return 1 - m_s / m_t
        return 1 - (m_s - self._row_sigma(state) * (1 - m_t)) / m_t

    def _row_sigma(self, state: SamplerState) -> Tensor:
        """float32 [B]; of "conf" the factor before the softmax."""
        eta = state.per_request(PUBLISHED_ETA[self.kind] if self.eta is None else self.eta)
        limit = self._limit(state)
        if self.kind in ("rescale", "conf"):
            return eta * limit
        sigma = limit.clamp(max=eta)
        if self.kind == "cap":
            return sigma
        t, _ = self.schedule.times(state)
        return torch.where((t > self.t_off) & (t <= self.t_on), sigma, 0)

    def _limit(self, state: SamplerState) -> Tensor:
        """sigma_max. 0 in the step that leads to noise level 0: all is committed then."""
        m_t, m_s = self.mask_shares(state)
        return (m_s / (1 - m_t).clamp(min=1e-9)).clamp(max=1)

    def mask_shares(self, state: SamplerState) -> tuple[Tensor, Tensor]:
        """float32 [B] each: 1 - alpha at t and at s."""
        t, s = self.schedule.times(state)
        return (self._masked(t), self._masked(s)) if self.kind == "loop" else (t, s)

    def _masked(self, t: Tensor) -> Tensor:
        m_on = 1 - self.alpha_on
        before = 1 - (1 - t) * (self.alpha_on / (1 - self.t_on))
        return torch.where(t > self.t_on, before, torch.where(t > self.t_off, m_on, t * (m_on / self.t_off)))


@dataclass(frozen=True)
class RemaskedUnmask(AncestralUnmask):
    """`AncestralUnmask` with the probability that ReMDM's remasking calls for."""

    remask: ReMDM = field(kw_only=True)

    promise = "ReMDM's commits; every step needs its forward"
    keyed_by_step: ClassVar[bool] = True
    foresees: ClassVar[bool] = False

    def check(self, sampler: Sampler) -> None:
        if sampler.remask != self.remask:
            raise InvalidArgumentError(f"RemaskedUnmask goes with its ReMDM: pass remask={self.remask!r} alone")

    def probability(self, state: SamplerState) -> Tensor:
        return self.remask.commit_probability(state)

    def noise(self, state: SamplerState) -> Tensor | None:
        return self.remask.mask_shares(state)[0] if state.block_length is None else None
