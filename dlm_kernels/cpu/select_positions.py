"""Which positions commit this step. See reference/select_positions.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cpu.library import check, library, pack, rows


def select_arguments(
    shape: tuple[int, int],
    score: Tensor | None,
    eligible: Tensor | None,
    quota: Tensor | None,
    threshold: Tensor | None,
    factor: Tensor | None,
    entropy_bound: Tensor | None,
    entropy: Tensor | None,
    at_least: Tensor,
    strict: bool,
) -> tuple[list[int], Tensor, list[Tensor | None]]:
    """The fields of `DlmkSelectArgs`, the output they point to, and the per-row tensors to keep alive during the call."""
    selected = torch.empty(shape, dtype=torch.bool)
    per_row = [None if p is None else p.contiguous() for p in (quota, threshold, factor, entropy_bound, at_least)]
    addresses = [0 if p is None else p.data_ptr() for p in per_row]
    fields = [
        *shape,
        *(*rows(score), *rows(eligible)),
        *addresses[:4],
        *rows(entropy),
        *(addresses[4], strict, torch.get_num_threads(), selected.data_ptr()),
    ]
    return fields, selected, per_row


def select_positions(
    score: Tensor,
    eligible: Tensor,
    quota: Tensor | None,
    threshold: Tensor | None,
    factor: Tensor | None,
    entropy_bound: Tensor | None,
    entropy: Tensor | None,
    at_least: Tensor,
    strict: bool,
) -> Tensor:
    """bool [B, L]: the union of what the rules choose and the `at_least` best, within `eligible`."""
    shape = (score.shape[0], score.shape[1])
    fields, selected, _kept = select_arguments(
        shape, score, eligible, quota, threshold, factor, entropy_bound, entropy, at_least, strict
    )
    check(library().dlmk_select_positions(pack(fields)))
    return selected
