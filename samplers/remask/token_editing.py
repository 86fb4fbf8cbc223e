"""LLaDA2.1's token editing: committed tokens are replaced, not masked again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.remask.base import Remask, revisable
from dlm_samplers.state import SamplerState

POST_STEPS = "token_editing.post_steps"


@dataclass(frozen=True)
class TokenEditing(Remask):
    """Replace a token of the current block where the model proposes another with probability above tau_edit
    (LLaDA2.1, arXiv:2602.08676). Which masks commit stays with the policy: upstream's is `Threshold(tau, strict=True)`.

    A block that is full gets up to `max_post_steps` forwards more, and moves on after the first that edits nothing. As
    `generate` of the released model, SGLang's JointThreshold and diffusers' LLaDA2Pipeline do it, whose settings differ:

    | | tau | tau_edit | max_post_steps |
    |---|---|---|---|
    | released `generate` | 0.95 | 0.9 | 16 |
    | model card's quality mode, diffusers | 0.7 | 0.5 | 16 |
    | model card's speed mode, SGLang | 0.5 | 0 | 16 |

    Made for models trained to edit. At a temperature above 0 the proposal is a draw, so that edits resample the text.
    """

    tau_edit: float = 0.5
    max_post_steps: int = 16

    keeps_times: ClassVar[bool] = True
    guarantee = Guarantee.APPROXIMATE
    promise = (
        "the model's trained decoding rule; edits make no masks, and a full block gets at most max_post_steps forwards"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.tau_edit <= 1:
            raise InvalidArgumentError(f"tau_edit must be in [0, 1], got {self.tau_edit}")
        steps = self.max_post_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise InvalidArgumentError(f"max_post_steps must be an int >= 0, got {steps!r}")

    def start(self, state: SamplerState) -> None:
        state.memory[POST_STEPS] = torch.zeros_like(state.step)

    def rewrite(self, evaluation: Evaluation, chosen: Tensor, state: SamplerState) -> Tensor:
        scores = evaluation.scores
        edits = revisable(state) & (scores.token != state.tokens) & (scores.confidence > self.tau_edit)
        was_full = ~state.active.any(-1)
        full = ~(state.active & ~chosen).any(-1)
        post_steps = torch.where(was_full, state.memory[POST_STEPS] + 1, 0)
        state.memory[POST_STEPS] = post_steps
        unsettled = ~was_full | edits.any(-1)
        state.held = state.live & full & unsettled & (post_steps < self.max_post_steps)
        return edits
