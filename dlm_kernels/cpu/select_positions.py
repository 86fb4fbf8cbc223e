"""Which positions commit this step. See reference/select_positions.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cpu.library import check, library, pack, per_row, rows


def select_fields(
    selected: Tensor,
    score: Tensor | None,
    eligible: Tensor | None,
    quota: Tensor | None,
    threshold: Tensor | None,
    factor: Tensor | None,
    entropy_bound: Tensor | None,
    entropy: Tensor | None,
    at_least: Tensor,
    strict: bool,
) -> list[int]:
    """The fields of `DlmkSelectArgs`; `selected` is the output."""
    return [
        *selected.shape,
        *(*rows(score), *rows(eligible)),
        *(*per_row(quota), *per_row(threshold), *per_row(factor), *per_row(entropy_bound)),
        *(*rows(entropy), *per_row(at_least)),
        *(strict, torch.get_num_threads(), selected.data_ptr()),
    ]


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
    selected = torch.empty(score.shape, dtype=torch.bool)
    fields = select_fields(
        selected, score, eligible, quota, threshold, factor, entropy_bound, entropy, at_least, strict
    )
    check(library().dlmk_select_positions(pack(fields)))
    return selected
