"""What the steps are given."""

from __future__ import annotations

from typing import Any

import torch

from dlm_kernels import arguments


def check_step(model_output: Any, sample: Any) -> None:
    """Raises InvalidArgumentError unless these are logits [B, L, V] and tokens int64 [B, L] on one device."""
    arguments.tensor("sample", sample, (torch.int64,), (None, None))
    arguments.tensor("model_output", model_output, arguments.LOGIT_DTYPES, (*sample.shape, None))
    arguments.same_device("model_output", model_output, sample)
