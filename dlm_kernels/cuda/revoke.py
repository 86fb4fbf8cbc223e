"""Which committed tokens become masks again. See reference/revoke.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cuda import module
from dlm_kernels.cuda.arguments import SELECT_THREADS, address, key_scratch, per_row, rows, threads_for
from dlm_kernels.cuda.module import Kernel

KERNEL = Kernel("revoke", "dlmk_revoke", SELECT_THREADS)


def revoke_(
    tokens: Tensor,
    confidence: Tensor,
    mask_id: int,
    eligible: Tensor | None,
    threshold: Tensor | None,
    quota: Tensor | None,
    probability: Tensor | None,
    committed: Tensor | None,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    """(remasked int32 [B], revoked bool [B, L])."""
    remasked = torch.empty(tokens.shape[0], dtype=torch.int32, device=tokens.device)
    revoked = torch.empty(tokens.shape, dtype=torch.bool, device=tokens.device)
    keys = key_scratch(tokens)
    launch_revocation(
        *(remasked, revoked, keys, tokens, confidence, mask_id, eligible, threshold, quota, probability, committed),
        *(seed, row_ids, step),
    )
    return remasked, revoked


def launch_revocation(
    remasked: Tensor,
    revoked: Tensor,
    keys: Tensor | None,
    tokens: Tensor,
    confidence: Tensor,
    mask_id: int,
    eligible: Tensor | None,
    threshold: Tensor | None,
    quota: Tensor | None,
    probability: Tensor | None,
    committed: Tensor | None,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
) -> None:
    """Fills `remasked` and `revoked` and writes the tokens; `keys` is `key_scratch`'s."""
    batch, length = tokens.shape
    if batch == 0:
        return
    fields = [
        *(batch, length, *rows(tokens), mask_id, *rows(confidence), *rows(eligible)),
        *(*per_row(threshold), *per_row(quota), *per_row(committed), *rows(probability)),
        *(*rows(seed), *rows(row_ids), *rows(step)),
        *(address(keys), remasked.data_ptr(), revoked.data_ptr()),
    ]
    module.launch(KERNEL, batch, threads_for(length, SELECT_THREADS), fields, tokens.device)
