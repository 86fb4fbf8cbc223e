"""WINO: draft boldly, and ask of every token whether it would be proposed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.policies.base import Policy, per_request
from dlm_samplers.remask.base import Companions, Remask, Revocation, revisable
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler

FEWEST_CAP, GREATEST_CAP = 5, 20


@dataclass(frozen=True)
class CappedThreshold(Policy):
    """Commit what is more confident than tau, at least one position and at most min(max(0.7 N, 5), 20), N the row's open
    masks (WINO's draft, arXiv:2507.18578)."""

    tau: float | tuple[float, ...] = 0.6

    guarantee = Guarantee.APPROXIMATE
    promise = "a low threshold, to be verified"

    def __post_init__(self) -> None:
        if not all(0 < tau <= 1 for tau in per_request(self.tau)):
            raise InvalidArgumentError(f"tau must be in (0, 1], got {self.tau}")

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        cap = (state.remaining * 7 // 10).clamp(min=FEWEST_CAP, max=GREATEST_CAP)
        best = select_positions(scores.confidence, state.active, quota=cap, at_least=0)
        sure = select_positions(scores.confidence, state.active, threshold=state.per_request(self.tau), strict=True)
        return best & sure


@dataclass(frozen=True)
class ShadowVerify(Remask):
    """Take back committed tokens that the model, not shown them, gives a probability below tau_2 (WINO, arXiv:2507.18578).

    Beside the canvas the forward sees a shadow of the block: masks with the positions of its blanks. Shadow i attends to all
    but the real token i; no real position attends to a shadow. So each step drafts and verifies in one forward, which is
    longer by the block. Rows take back fewer tokens than they commit, the least probable first.

    tau_1: of the draft, `CappedThreshold(tau_1)`, which is the policy unless another is given.

    What the verifier leaks: shadow i does not see token i, but from the second layer on the others it sees have. The longer
    the model's path, the more it confirms what is there; a model of one layer verifies cleanly.

    Matches `decoding_wino` of the authors' repository, defaults of its GSM8K run; blocks there are of 128. There the limit is
    what the step before committed, and one is taken back only when more than one commits; here it is what this step commits,
    so that masks get fewer in every step. A `logits_processor` sees the canvas alone, not the shadow.
    """

    tau_1: float | tuple[float, ...] = 0.6
    tau_2: float | tuple[float, ...] = 0.9

    guarantee = Guarantee.APPROXIMATE
    promise = "the verifier sees the token through the positions that saw it"
    needs_logits = True

    def __post_init__(self) -> None:
        for name in ("tau_1", "tau_2"):
            if not all(0 < tau <= 1 for tau in per_request(getattr(self, name))):
                raise InvalidArgumentError(f"{name} must be in (0, 1], got {getattr(self, name)}")

    @property
    def policy(self) -> Policy:
        return CappedThreshold(self.tau_1)

    def check(self, sampler: Sampler) -> None:
        spec = sampler.spec
        if not spec.any_attention:
            raise InvalidArgumentError(
                "ShadowVerify needs a model that takes any attention mask [B, 1, L, L] and position ids: say so with "
                "spec=ModelSpec(..., any_attention=True, position_ids='position_ids')"
            )
        if spec.logit_shift:
            raise InvalidArgumentError(
                "ShadowVerify needs outputs that predict their own position (spec.logit_shift = 0): a shadow that predicts "
                "the next position would be told the token before it alone"
            )
        if sampler.policy.scheduled:
            raise InvalidArgumentError(
                f"ShadowVerify takes tokens back, which a schedule does not count on: leave policy out, or use one that "
                f"decides in every step, such as Threshold; got {sampler.policy!r}"
            )

    def scored(self, state: SamplerState) -> Tensor | None:
        return None  # the shadows are, not the tokens

    def companions(self, state: SamplerState) -> Companions:
        column, width = self._columns(state), state.width
        inside, at = (column >= 0) & (column < state.block_end[:, None]), column.clamp(0, width - 1)
        shadow = inside & state.editable.gather(1, at)
        own = column[:, :, None] == state.column
        rows, size = column.shape
        attention = torch.zeros(rows, width + size, width + size, dtype=torch.bool, device=column.device)
        attention[:, :, :width] = state.valid[:, None]
        attention[:, width:, :width] &= ~own
        attention[:, width:, width:] = shadow[:, None]
        return Companions(at, inside & revisable(state).gather(1, at), attention)

    def revoke(self, evaluation: Evaluation, chosen: Tensor, state: SamplerState) -> Revocation:
        assert evaluation.companions is not None
        column = self._columns(state)
        tokens = state.tokens.gather(1, column.clamp(0, state.width - 1))
        probability = evaluation.companions.log_probability(tokens).exp()
        of_column = probability.gather(1, (state.column - column[:, :1]).clamp(0, column.shape[1] - 1))
        return Revocation(of_column.where(revisable(state), 1.0), threshold=state.per_request(self.tau_2))

    def _columns(self, state: SamplerState) -> Tensor:
        """int64 [B, S]: of which column each shadow is one, from the start of the row's block on; there may be too many."""
        if state.block_length is None:
            return state.column.expand_as(state.tokens)
        last = state.block_end - 1 - state.prompt_length
        start = torch.div(last, state.block_length, rounding_mode="floor") * state.block_length + state.prompt_length
        return start[:, None] + torch.arange(state.block_length, device=start.device)
