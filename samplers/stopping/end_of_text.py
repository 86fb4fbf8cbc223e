"""Stop a row once its text is settled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.models import ModelSpec
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping.base import StoppingRule

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler


@dataclass(frozen=True)
class EndOfText(StoppingRule):
    """A row ends when an end-of-text token stands in its generated region and nothing before it is masked.

    Committed tokens are never revised here, so the text before the token is final: what is skipped would be cut off
    anyway. Tokens after it differ from those of the full run (they are filled with the end-of-text token).
    """

    guarantee = Guarantee.TEXT_EXACT

    promise = "tokens before a committed end of text are final, what is skipped would be cut off"

    def check(self, sampler: Sampler) -> None:
        if sampler.remask is not None:
            raise InvalidArgumentError(
                "EndOfText needs final tokens: leave it out with remask=, which takes tokens back"
            )
        if sampler.spec.eos_id is None:
            raise InvalidArgumentError("EndOfText needs eos_id: the model's config has none, so pass eos_id=")

    def stop(self, state: SamplerState, spec: ModelSpec, evaluation: Evaluation) -> Tensor:
        column = torch.arange(state.tokens.shape[1], device=state.tokens.device)
        ended = (state.tokens == spec.eos_id) & (column >= state.prompt_length[:, None]) & state.valid
        masked = state.masked()
        first_end = torch.where(ended.any(-1), ended.int().argmax(-1), -1)
        return (first_end >= 0) & ~(masked & (column < first_end[:, None])).any(-1)
