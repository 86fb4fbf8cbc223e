"""One uniform number per key."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.reference.philox import keyed_words, uniform_from_word


def keyed_uniform(seed: Tensor, row_ids: Tensor, step: Tensor, stream: int) -> Tensor:
    """Uniform in (0, 1), fp32 [...], for keys int64 [...]: the draw of index 0 of a stream."""
    return uniform_from_word(keyed_words(seed, row_ids, step, torch.zeros_like(seed), stream)[0])
