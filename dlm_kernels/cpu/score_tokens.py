"""Which token each row of logits proposes, and how sure it is. See reference/score_tokens.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cpu.library import check, library, pack, rows

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


NO_OUTPUTS = (0, 0, 0, 0, 0)


def scoring_fields(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    suppress_ids: Tensor | None,
    eligible: Tensor | None,
    sampling_confidence: bool,
    top_p_first: bool,
) -> list[int]:
    """The fields of `DlmkScoreArgs` up to its outputs. `suppress_ids` must be contiguous and outlive the call."""
    return [
        *(logits.data_ptr(), DTYPES[logits.dtype], *logits.shape, logits.stride(0), logits.stride(1)),
        *(*rows(temperature), *rows(top_k), *rows(top_p), *rows(seed), *rows(row_ids), *rows(step)),
        *((0, 0) if suppress_ids is None else (suppress_ids.data_ptr(), suppress_ids.numel())),
        *rows(eligible),
        *(sampling_confidence, top_p_first, torch.get_num_threads()),
    ]


def score_tokens(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    suppress_ids: Tensor | None,
    eligible: Tensor | None,
    sampling_confidence: bool,
    top_p_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(token, confidence, margin, entropy, logsumexp), each [B, L]."""
    suppress_ids = None if suppress_ids is None else suppress_ids.contiguous()
    shape = logits.shape[:-1]
    outputs = (
        torch.empty(shape, dtype=torch.int64),
        torch.empty(shape),
        torch.empty(shape),
        torch.empty(shape),
        torch.empty(shape),
    )
    fields = scoring_fields(
        logits, temperature, top_k, top_p, seed, row_ids, step, suppress_ids, eligible, sampling_confidence, top_p_first
    )
    check(library().dlmk_score_tokens(pack([*fields, *(output.data_ptr() for output in outputs)])))
    return outputs
