"""How far a distribution over the vocabulary moved. See reference/topk_kl.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cpu.library import OUT_OF_RANGE, as_rows, check, library, pack
from dlm_kernels.cpu.score_tokens import DTYPES
from dlm_kernels.errors import InvalidArgumentError


def topk_kl(
    logits: Tensor, k: int, before_ids: Tensor | None, before_log_probs: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(kl fp32 [...], ids int64 [..., k], log_probs fp32 [..., k + 1])."""
    shape, rows = logits.shape[:-1], as_rows(logits)
    kl, ids = torch.empty(shape), torch.empty((*shape, k), dtype=torch.int64)
    log_probs = torch.empty((*shape, k + 1))
    before = [0, 0, 0]
    if before_ids is not None and before_log_probs is not None:
        before_ids, before_log_probs = before_ids.contiguous(), before_log_probs.contiguous()
        before = [before_ids.data_ptr(), before_log_probs.data_ptr(), before_ids.shape[-1]]
    fields = [
        *(rows.data_ptr(), DTYPES[rows.dtype], *rows.shape, rows.stride(0), rows.stride(1)),
        *(k, torch.get_num_threads(), *before),
        *(kl.data_ptr(), ids.data_ptr(), log_probs.data_ptr()),
    ]
    status = library().dlmk_topk_kl(pack(fields))
    if status == OUT_OF_RANGE:
        raise InvalidArgumentError(f"before.ids must be in [0, {logits.shape[-1]}), the vocabulary of the logits")
    check(status)
    return kl, ids, log_probs
