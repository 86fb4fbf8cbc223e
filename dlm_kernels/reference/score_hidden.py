"""LM head and scores: the logits, then `score_tokens`."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.lm_head import Head
from dlm_kernels.reference.score_tokens import score_tokens


def score_hidden(
    hidden: Tensor,  # [R, D]
    weight: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    temperature: Tensor,  # this and the next five [R]
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
    suppress_ids: Tensor | None,  # [S]
    eligible: Tensor | None,  # [R] bool
    sampling_confidence: bool,
    top_p_first: bool,
    round_logits: bool,
    batch_invariant: bool,
) -> tuple[Tensor, ...]:
    """(token, confidence, margin, entropy, logsumexp), each [R]. Rows that are not eligible are not computed."""
    rows = hidden.shape[0]
    live = torch.arange(rows, device=hidden.device) if eligible is None else eligible.nonzero()[:, 0]
    head = Head(hidden[live], weight, bias, round_logits, batch_invariant)
    temperature, top_k, top_p, seed, row_ids, step = (
        value[live][None] for value in (temperature, top_k, top_p, seed, row_ids, step)
    )
    scores = score_tokens(
        head.whole()[None], temperature, top_k, top_p, seed, row_ids, step, suppress_ids, None, sampling_confidence,
        top_p_first,
    )  # fmt: skip
    outputs = [value.new_zeros(rows) for value in scores]
    outputs[4].fill_(-torch.inf)  # logsumexp
    for output, value in zip(outputs, scores, strict=True):
        output[live] = value[0]
    return tuple(outputs)
