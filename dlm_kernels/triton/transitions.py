"""What the transitions from time t to an earlier time s share: the device code of `csrc/common/posterior.h`, in fp64.

The order of roundings is that of the reference; kernels compile without contraction (`runtime.launch`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from dlm_kernels.reference import philox as spec
from dlm_kernels.triton.philox import keyed_uniform, keyed_words
from dlm_kernels.triton.rows import per_row
from dlm_kernels.triton.runtime import INTERPRETED

ROUTE_STREAM, STATE_STREAM = tl.constexpr(spec.ROUTE_STREAM), tl.constexpr(spec.STATE_STREAM)
BLOCK = 2**14 if INTERPRETED else 256  # positions a program decides on; the interpreter pays per operation


@triton.jit
def program_positions(length, count, BLOCK: tl.constexpr):
    """This program's positions: number r, batch b, position l (int64) and whether it is there, each [BLOCK]."""
    r = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b = r // length
    return r, b, r - b * length, r < count


@triton.jit
def keys_of(keys, b, l, live):  # noqa: E741 - the name it has everywhere
    """(seed, row id, step), int64."""
    return per_row(keys[0], b, l, live, 0), per_row(keys[1], b, l, live, 0), per_row(keys[2], b, l, live, 0)


@triton.jit
def route_uniform(keys, b, l, live):  # noqa: E741
    """The uniform number, fp32 as everywhere, that is compared with fp64 probabilities."""
    seed, row_ids, step = keys_of(keys, b, l, live)
    return keyed_uniform(seed, row_ids, step, ROUTE_STREAM).to(tl.float64)


@triton.jit
def keyed_integer(keys, b, l, live, below):  # noqa: E741
    """One integer in [0, below), int64."""
    seed, row_ids, step = keys_of(keys, b, l, live)
    word, _, _, _ = keyed_words(seed, row_ids, step, tl.zeros_like(row_ids), STATE_STREAM)
    return (word.to(tl.uint64) * below.to(tl.uint64) >> 32).to(tl.int64)


@triton.jit
def levels_of(alphas, b, live):
    """(alpha_t, alpha_s) fp64 of batch rows; each is a pointer and a stride."""
    return per_batch_row(alphas[0], b, live), per_batch_row(alphas[1], b, live)


@triton.jit
def per_batch_row(parameter, b, live):
    """A parameter of batch rows (pointer, stride)."""
    return tl.load(parameter[0] + b * parameter[1], mask=live, other=0)
