"""The reverse steps of score-entropy discrete diffusion: a pass for the sum of the scores, one for the draw."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dlm_kernels.numba.portable_math import gumbel_from_uniform, keyed_words, uniform_from_word
from dlm_kernels.numba.runtime import flat, jit, over_rows
from dlm_kernels.numba.score_tokens import LARGEST_GUMBEL, NEGATIVE_INFINITY, row_bits, widen

f32, f64, u64, i64 = np.float32, np.float64, np.uint64, np.int64
SLACK = f64(1e-5)  # more than what rounds off before two noised weights are compared, relative to their terms


@jit
def weights(absorbs, analytic, denoise, delta, vocabulary, total):
    """(stay, factor, divisor, offset, transition): the weight of y is (s(y) factor / divisor - offset) transition.

    `total` is the sum of the scores without that of x_t, which is 1 by definition. See the reference for the formulas.
    """
    if denoise:
        return 0.0, 1.0, 1.0, 0.0, 1.0
    if absorbs or not analytic:
        rate = delta if absorbs else delta / vocabulary
        if analytic:
            rate = np.expm1(delta)
        return 1.0 - rate * total, rate, 1.0, 0.0, 1.0
    e = np.exp(-delta)
    noise, offset = (1.0 - e) / vocabulary, (1.0 - e) / (vocabulary * e) * (total + 1.0)
    return (1.0 / e - offset) * (noise + e), 1.0, e, offset, noise


@jit
def noised(weight, word):
    return f32(np.log(0.0 if weight < 0.0 else weight)) + gumbel_from_uniform(uniform_from_word(word))


@jit
def step_row(x, here, absorbs, analytic, denoise, delta, seed, row_id, step):
    """The drawn state. x holds the log scores; that of `here` is not read."""
    if 0 <= here < x.size:
        x[here] = NEGATIVE_INFINITY
    total, tallest = f64(0), i64(0)
    for v in range(x.size):
        total += np.exp(f64(x[v]))
        if x[v] > x[tallest]:
            tallest = i64(v)
    stay, factor, divisor, offset, transition = weights(absorbs, analytic, denoise, delta, f64(x.size), total)
    slope = np.log(factor / divisor * transition)  # a weight is at most s(y) times e^slope

    # What two likely states reach, so that most of the others need no random numbers.
    best, token = NEGATIVE_INFINITY, i64(0)
    for likely in (here, tallest):
        weight = stay if likely == here else (np.exp(f64(x[likely])) * factor / divisor - offset) * transition
        value = noised(weight, keyed_words(seed, row_id, step, u64(likely >> 2), u64(0))[likely & 3])
        if value > best:
            best, token = value, likely

    for block in range((x.size + 3) // 4):
        begin, end = 4 * block, min(4 * block + 4, x.size)
        slack = SLACK * (1000.0 + abs(slope) + abs(f64(best)))
        possible = False
        for v in range(begin, end):
            possible |= not f64(x[v]) + slope + f64(LARGEST_GUMBEL) + slack < f64(best)
        if not possible:
            continue
        words = keyed_words(seed, row_id, step, u64(block), u64(0))
        for v in range(begin, end):
            weight = stay if v == here else (np.exp(f64(x[v])) * factor / divisor - offset) * transition
            value = noised(weight, words[v - begin])
            if value != value:
                return i64(v)  # as in argmax
            if value > best or (value == best and v < token):
                best, token = value, i64(v)
    return token


@jit
def step_rows(
    begin, end, live, bits, starts, kind, vocabulary, tokens, absorbs, analytic, denoise, delta, seed, row_ids, step,
    after,
):  # fmt: skip
    x = np.empty(vocabulary, np.float32)
    for i in range(begin, end):
        r = live[i]
        widen(bits, starts[i], kind, x)
        after[r] = step_row(x, tokens[r], absorbs, analytic, denoise, delta[r], seed[r], row_ids[r], step[r])


def score_entropy_step_(
    tokens: Tensor,
    log_score: Tensor,
    mask_id: int,
    delta_sigma: Tensor,
    method: str,
    denoise: bool,
    eligible: Tensor | None,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
) -> Tensor:
    """See the reference."""
    moves = torch.ones_like(tokens, dtype=torch.bool) if mask_id < 0 else tokens == mask_id
    if eligible is not None:
        moves &= eligible
    live, after = flat(moves).nonzero()[0], tokens.clone(memory_format=torch.contiguous_format)
    vocabulary = log_score.shape[-1]
    if live.size:
        over_rows(
            step_rows, live.size, live.size * vocabulary, live, *row_bits(log_score, live), vocabulary, flat(tokens),
            mask_id >= 0, method == "analytic", denoise, flat(delta_sigma[:, None].expand(tokens.shape)), flat(seed),
            flat(row_ids), flat(step), after.view(-1).numpy(),
        )  # fmt: skip
    changed = after != tokens
    tokens.copy_(after)
    return changed
