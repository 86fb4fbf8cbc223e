"""Which positions commit this step. See reference/select_positions.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.cuda import module
from dlm_kernels.cuda.arguments import SELECT_THREADS, address, key_scratch, per_row, rows, threads_for
from dlm_kernels.cuda.module import Kernel

KERNEL = Kernel("select_positions", "dlmk_select_positions", SELECT_THREADS)


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
    selected = torch.empty(score.shape, dtype=torch.bool, device=score.device)
    keys = key_scratch(score)
    launch_selection(
        selected, keys, score, eligible, quota, threshold, factor, entropy_bound, entropy, at_least, strict
    )
    return selected


def launch_selection(
    selected: Tensor,
    keys: Tensor | None,
    score: Tensor,
    eligible: Tensor,
    quota: Tensor | None,
    threshold: Tensor | None,
    factor: Tensor | None,
    entropy_bound: Tensor | None,
    entropy: Tensor | None,
    at_least: Tensor,
    strict: bool,
) -> None:
    """Fills `selected`; `keys` is `key_scratch`'s."""
    batch, length = score.shape
    if batch == 0 or length == 0:
        return
    fields = [
        *(batch, length, *rows(score), *rows(eligible), *rows(entropy)),
        *rule_fields(quota, threshold, factor, entropy_bound, at_least, strict, keys),
        selected.data_ptr(),
    ]
    module.launch(KERNEL, batch, threads_for(length, SELECT_THREADS), fields, score.device)


def rule_fields(
    quota: Tensor | None,
    threshold: Tensor | None,
    factor: Tensor | None,
    entropy_bound: Tensor | None,
    at_least: Tensor,
    strict: bool,
    keys: Tensor | None,
) -> list[int]:
    """`RuleArguments`."""
    rules = (quota, threshold, factor, entropy_bound, at_least)
    return [*(field for rule in rules for field in per_row(rule)), int(strict), address(keys)]
