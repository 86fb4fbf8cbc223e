"""Keyed random words on blocks: `reference/philox.py`, four words a call.

`tl.philox` takes the counter as we lay it out (c0 to c3 in order) and the key as one 64-bit seed, low half first, so the rounds
are Triton's own; the known answers in the tests hold it to that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dlm_kernels.triton.portable_math import gumbel_from_uniform, uniform_from_word


@triton.jit
def keyed_words(seed, row_ids, step, block, STREAM: tl.constexpr):
    """The four uint32 words of indices 4 * block ... 4 * block + 3; keys int64, block int32 or uint32; all broadcast."""
    c0 = (block.to(tl.uint32) | (STREAM << 24)) + tl.zeros_like(row_ids).to(tl.uint32)
    zero = tl.zeros_like(c0)
    c1 = row_ids.to(tl.uint32) + zero
    c2 = step.to(tl.uint32) + zero
    c3 = (row_ids >> 32).to(tl.uint32) + zero
    return tl.philox(seed, c0, c1, c2, c3)


@triton.jit
def keyed_uniform(seed, row_ids, step, STREAM: tl.constexpr):
    """fp32 in (0, 1), the draw of index 0."""
    w0, _, _, _ = keyed_words(seed, row_ids, step, tl.zeros_like(row_ids), STREAM)
    return uniform_from_word(w0)


@triton.jit
def interleave_four(w0, w1, w2, w3, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Four [ROWS, BLOCK / 4] to [ROWS, BLOCK]: index v takes element v // 4 of operand v % 4."""
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (ROWS, BLOCK))


@triton.jit
def gumbel_noise(seed, row_ids, step, first, STREAM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Standard Gumbel noise of indices `first` (a multiple of 4) and on, fp32 [ROWS, BLOCK]; keys int64 [ROWS, 1]."""
    blocks = first // 4 + tl.arange(0, BLOCK // 4)[None, :]
    w0, w1, w2, w3 = keyed_words(seed, row_ids, step, blocks, STREAM)
    return gumbel_from_uniform(uniform_from_word(interleave_four(w0, w1, w2, w3, ROWS, BLOCK)))
