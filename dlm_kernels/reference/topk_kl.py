"""How far a distribution over the vocabulary moved, from the few probabilities that were kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlm_kernels.reference.score_tokens import ELEMENTS_AT_ONCE


def topk_kl(
    logits: Tensor,  # [..., V]
    k: int,
    before_ids: Tensor | None,  # [..., K] int64
    before_log_probs: Tensor | None,  # [..., K + 1] fp32, the last one of everything else
) -> tuple[Tensor, Tensor, Tensor]:
    """(kl fp32 [...], ids int64 [..., k], log_probs fp32 [..., k + 1])."""
    shape, vocabulary = logits.shape[:-1], logits.shape[-1]
    rows = logits.reshape(-1, vocabulary)
    kl = rows.new_full((len(rows),), math.inf, dtype=torch.float32)
    ids = rows.new_zeros((len(rows), k), dtype=torch.int64)
    log_probs = rows.new_zeros((len(rows), k + 1), dtype=torch.float32)
    for at in torch.arange(len(rows), device=rows.device).split(max(1, ELEMENTS_AT_ONCE // vocabulary)):
        y = rows[at].double().log_softmax(-1)
        if before_ids is not None and before_log_probs is not None:
            p = before_log_probs.reshape(len(rows), -1)[at].double()
            q = coarse(y, before_ids.reshape(len(rows), -1)[at])
            terms = p.exp() * (p - q)
            kl[at] = terms.masked_fill(p == -math.inf, 0).sum(-1).clamp(min=0).float()
        order = rows[at].masked_fill(y.isnan(), math.nan)  # the logits themselves: in y, close ones may round to ties
        ids[at] = order.argsort(dim=-1, descending=True, stable=True)[:, :k]  # ties: lowest id
        log_probs[at] = coarse(y, ids[at]).float()
    return kl.view(shape), ids.view(*shape, k), log_probs.view(*shape, k + 1)


def coarse(y: Tensor, ids: Tensor) -> Tensor:
    """Log probabilities [R, K + 1] of these tokens and of all others together, from those of all tokens [R, V]."""
    others = y.scatter(1, ids, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat((y.gather(1, ids), others), dim=-1)
