"""Random numbers of a step, keyed by row and position."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dlm_kernels.reference.philox import STATE_STREAM, keyed_integer
from dlm_kernels.rng import make_row_ids


class Keys(NamedTuple):
    """What a step's draws are keyed by: row b is request b, so what it draws does not depend on the other rows."""

    seed: Tensor  # int64 []
    row_ids: Tensor  # int64 [B, L]

    @classmethod
    def draw(cls, sample: Tensor, generator: torch.Generator | None) -> Keys:
        """One number from the generator, or from torch's for the device; it is not read back from there."""
        rows, length = sample.shape
        source = sample.device if generator is None else generator.device
        seed = torch.randint(2**63 - 1, (), generator=generator, device=source).to(sample.device)
        request = torch.arange(rows, device=sample.device)[:, None]
        return cls(seed, make_row_ids(request, torch.arange(length, device=sample.device)))

    def uniform_tokens(self, vocabulary: int) -> Tensor:
        """int64 [B, L], every token as likely; the ones that `uniform_step_` draws as noise."""
        seed = self.seed.expand_as(self.row_ids)
        return keyed_integer(seed, self.row_ids, torch.zeros_like(seed), vocabulary, STATE_STREAM)
