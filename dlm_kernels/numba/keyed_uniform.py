"""One uniform number per key."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dlm_kernels.numba.portable_math import keyed_words, uniform_from_word
from dlm_kernels.numba.runtime import call, flat, jit


@jit
def _keyed_uniform(seed, row_ids, step, stream, out):
    for r in range(out.size):
        out[r] = uniform_from_word(keyed_words(seed[r], row_ids[r], step[r], np.uint64(0), stream)[0])


def keyed_uniform(seed: Tensor, row_ids: Tensor, step: Tensor, stream: int) -> Tensor:
    """See the reference."""
    out = torch.empty(seed.shape, dtype=torch.float32)
    call(_keyed_uniform, flat(seed), flat(row_ids), flat(step), np.uint64(stream), out.view(-1).numpy())
    return out
