"""The interface of a length rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.models import ModelSpec
from dlm_samplers.parts import Part
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler


class LengthRule(Part, ABC):
    """Inserts masks into the generated regions while they are denoised, up to `max_new_tokens` of each row.

    The width of the batch follows its longest row, so the loop looks at the rows' lengths on the device in every step.
    """

    def check(self, sampler: Sampler) -> None:
        if sampler.policy.scheduled or sampler.policy.foresees:
            raise InvalidArgumentError(
                f"{type(self).__name__} changes the number of masks, so no schedule can divide them up: use a policy that "
                f"decides in every step, such as Threshold; got {sampler.policy!r}"
            )
        if sampler.spec.attention_mask == "none":
            raise InvalidArgumentError(
                f"{type(self).__name__} makes rows of different lengths, and the model cannot ignore padding "
                "(spec.attention_mask is 'none'): leave length out"
            )

    @abstractmethod
    def waiting(self, state: SamplerState) -> Tensor:
        """bool [B]: rows whose length is still being found, which commit nothing and do not stop in this step."""

    @abstractmethod
    def insertions(self, state: SamplerState, spec: ModelSpec, evaluation: Evaluation) -> tuple[Tensor, Tensor]:
        """(column [B], count [B]), int64: after which mask how many more are put. Asked after the commit of every step, on
        the canvases that the forward saw; the count is 0 for rows that are not live."""
