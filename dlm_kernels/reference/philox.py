"""Random numbers that depend on nothing but their key: Philox4x32-10 (Salmon et al., SC 2011, "as easy as 1, 2, 3").

    key     = (seed low 32 bits, seed high 32 bits)
    counter = (stream << 24 | v >> 2, row id low, step low, row id high)      word v & 3 belongs to index v

A row id is `request << 32 | position`. The draw of an index is therefore the same in every batch, split and backend.
Integers are kept in int64 and masked to 32 bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlm_kernels.reference.portable_math import exponential_from_uniform, gumbel_from_uniform

MASK = 0xFFFFFFFF
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10

GUMBEL_STREAM = 0
UNIFORM_STREAM = 1  # the order of `denoise_step_(score="random")`
REVOKE_STREAM = 2  # which tokens are remasked
ROUTE_STREAM = 3  # which positions jump, and where from
STATE_STREAM = 4  # uniform noise tokens
NORMAL_STREAM = 5  # Gaussian noise
SUFFIX_STREAM = 6  # which masks behind the block are left out
LARGEST_UNIFORM = 1 - 2.0**-24


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Four words of 32 bits from a counter of four and a key of two (int64 tensors, values in [0, 2^32), broadcast)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The 64-bit product wraps into the sign; its bits are right, and the mask drops the shifted-in copies of the sign.
        product0, product1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        high0, low0 = (product0 >> 32) & MASK, product0 & MASK
        high1, low1 = (product1 >> 32) & MASK, product1 & MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL_0) & MASK, (k1 + WEYL_1) & MASK
    return c0, c1, c2, c3


def keyed_words(seed: Tensor, row_ids: Tensor, step: Tensor, block: Tensor, stream: int) -> tuple[Tensor, ...]:
    """The four words of indices 4 * block ... 4 * block + 3. All arguments int64, broadcast."""
    counter = ((stream << 24) | block, row_ids & MASK, step & MASK, (row_ids >> 32) & MASK)
    return philox4x32(counter, (seed & MASK, (seed >> 32) & MASK))


def uniform_from_word(word: Tensor) -> Tensor:
    """32 bits to fp32 in (0, 1): the middle of the word's interval, kept below 1 where rounding would reach it."""
    u = word.to(torch.float32) * 2.0**-32
    return (u + 2.0**-33).clamp(max=LARGEST_UNIFORM)


def keyed_integer(seed: Tensor, row_ids: Tensor, step: Tensor, below: int, stream: int) -> Tensor:
    """One integer in [0, below) per key, int64, `below` at most 2^31; no value is likelier by more than one in 2^32 / below."""
    return keyed_words(seed, row_ids, step, torch.zeros_like(seed), stream)[0] * below >> 32


def gumbel_noise(seed: Tensor, row_ids: Tensor, step: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise, fp32 [..., V], for keys int64 [...]."""
    blocks = torch.arange((vocabulary + 3) // 4, device=seed.device)
    words = keyed_words(seed[..., None], row_ids[..., None], step[..., None], blocks, GUMBEL_STREAM)
    return gumbel_from_uniform(uniform_from_word(torch.stack(words, dim=-1).flatten(-2)[..., :vocabulary]))


def keyed_normal(seed: Tensor, row_ids: Tensor, step: Tensor, dimension: int, stream: int) -> Tensor:
    """Standard normal numbers, fp32 [..., D], for keys int64 [...]: Box-Muller on pairs of words for pairs of indices."""
    blocks = torch.arange((dimension + 3) // 4, device=seed.device)
    words = keyed_words(seed[..., None], row_ids[..., None], step[..., None], blocks, stream)
    u = uniform_from_word(torch.stack(words, dim=-1)).unflatten(-1, (2, 2))  # [..., blocks, pair, 2]
    radius = (2 * exponential_from_uniform(u[..., 0])).sqrt()
    angle = u[..., 1] * (2 * math.pi)
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return pairs.flatten(-3)[..., :dimension]
