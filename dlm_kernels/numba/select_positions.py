"""Which positions commit this step."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dlm_kernels.numba.runtime import call, flat, jit

f32 = np.float32
ONE = f32(1)
INFINITY = f32(math.inf)


@jit
def ascending(values, eligible, order, keys):
    """Fills `order` with the eligible positions by value, lowest first, then by position; NaN last. Returns their number."""
    count = 0
    for i in range(values.size):
        if eligible[i]:
            order[count] = i
            keys[count] = INFINITY if values[i] != values[i] else values[i]
            count += 1
    ranked = order[:count][np.argsort(keys[:count], kind="mergesort")]
    order[:count] = ranked
    return count


@jit
def select_rows(
    score, eligible, has_quota, quota, has_threshold, threshold, has_factor, factor, has_bound, entropy_bound,
    entropy, at_least, strict, selected,
):  # fmt: skip
    rows, length = score.shape
    order, keys = np.empty(length, np.int64), np.empty(length, np.float32)
    for b in range(rows):
        best = at_least[b]
        if has_quota:
            best = max(best, quota[b])
        count = ascending(-score[b], eligible[b], order, keys)
        if has_factor:
            for n in range(1, count + 1):
                if score[b, order[n - 1]] >= ONE - factor[b] / f32(n + 1):
                    best = max(best, n)
        for n in range(min(best, count)):
            selected[b, order[n]] = True
        if has_threshold:
            for i in range(length):
                if eligible[b, i]:
                    meets = score[b, i] > threshold[b] if strict else score[b, i] >= threshold[b]
                    selected[b, i] |= meets
        if has_bound:
            ascending(entropy[b], eligible[b], order, keys)
            total, k = 0.0, 0
            for n in range(count):
                h = np.float64(entropy[b, order[n]])
                total += h
                if total - h <= np.float64(entropy_bound[b]):
                    k = n + 1
            for n in range(k):
                selected[b, order[n]] = True


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
    """See the reference."""
    selected = torch.zeros(score.shape, dtype=torch.bool)
    rules: list[object] = []
    for rule, dtype in ((quota, np.int64), (threshold, np.float32), (factor, np.float32), (entropy_bound, np.float32)):
        rules += [rule is not None, np.empty(0, dtype) if rule is None else flat(rule)]
    call(
        select_rows,
        score.contiguous().numpy(),
        eligible.contiguous().numpy(),
        *rules,
        np.empty((0, 0), np.float32) if entropy is None else entropy.contiguous().numpy(),
        flat(at_least),
        strict,
        selected.numpy(),
    )
    return selected
