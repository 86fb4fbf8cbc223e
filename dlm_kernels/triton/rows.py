"""Rows of logits in tiles, and their statistics: what every kernel over a vocabulary shares.

A program holds ROWS rows (one, except in the interpreter) of BLOCK entries. The state of a tile is (m, i, m2, s, t): its
maximum, that entry's index, the second maximum, s = sum e^(x - m), t = sum e^(x - m) (x - m). A tile with NaN has m = NaN and
the first NaN's index; +inf entries count 1 each in s.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dlm_kernels.triton.portable_math import widen

INFINITY = tl.constexpr(float("inf"))
NAN = tl.constexpr(float("nan"))  # for one function of a kernel: between two, Triton finds that it differs from itself
NOWHERE = tl.constexpr(2**31 - 1)  # an index behind all others
NEGLIGIBLE = tl.constexpr(-200.0)  # e^this is 0 in fp32; in place of -inf, whose product with that 0 would be NaN


@triton.jit
def program_rows(length, count, eligible, ROWS: tl.constexpr):
    """This program's rows: number r, batch b, position l (int64) and whether to compute it, each [ROWS]."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = r < count
    b = r // length
    l = r - b * length  # noqa: E741 - the name it has everywhere
    if eligible is not None:
        live &= per_row(eligible, b, l, live, 0) != 0
    return r, b, l, live


@triton.jit
def per_row(parameter, b, l, live, other):  # noqa: E741
    """A per-row parameter (pointer, stride of b, stride of l)."""
    return tl.load(parameter[0] + b * parameter[1] + l * parameter[2], mask=live, other=other)


@triton.jit
def row_pointers(logits, b, l):  # noqa: E741
    """Pointers to rows of [B, L, V] (pointer, stride of b, stride of l); b and l are int64, so offsets beyond 2^31 are too."""
    return logits[0] + b * logits[1] + l * logits[2]


@triton.jit
def any_of(flags):
    return tl.max(flags.to(tl.int32), 0) > 0


@triton.jit
def load_tile(row, live, first, vocabulary, suppress_ids, suppressed, BLOCK: tl.constexpr):
    """Entries `first` and on of rows at the pointers `row` [ROWS], fp32 [ROWS, BLOCK], and their indices [1, BLOCK].

    -inf: what is suppressed, beyond the vocabulary, or in rows that are not live (which are not read).
    """
    v = first + tl.arange(0, BLOCK)[None, :]
    x = widen(tl.load(row[:, None] + v, mask=live[:, None] & (v < vocabulary), other=-INFINITY))
    if suppress_ids is not None:
        for j in range(suppressed):
            token = tl.load(suppress_ids + j)
            if (token >= first) & (token < first + BLOCK):
                x = tl.where(v == token, -INFINITY, x)
    return x, v


@triton.jit
def tile_state(x, v):
    """(m, i, m2, s, t) of a tile, each [ROWS]. One exponential an entry."""
    clean = tl.where(x != x, INFINITY, x)
    m = tl.max(clean, 1)
    i = tl.min(tl.where(clean == m[:, None], v, NOWHERE), 1)
    m2 = tl.max(tl.where(v == i[:, None], -INFINITY, clean), 1)
    infinite = tl.abs(m) == INFINITY
    shift = tl.where(infinite, 0.0, m)
    if any_of(infinite):
        nan = tl.min(tl.where(x != x, v, NOWHERE), 1)
        clean = tl.where(infinite[:, None], tl.where(clean == m[:, None], 0.0, NEGLIGIBLE), clean)
        m = tl.where(nan < NOWHERE, float("nan"), m)
        i = tl.where(nan < NOWHERE, nan, i)
    y = tl.maximum(clean - shift[:, None], NEGLIGIBLE)
    e = tl.exp(y)
    return m, i, m2, tl.sum(e, 1), tl.sum(e * y, 1)


@triton.jit
def relative(a, m):
    """log(e^a / e^m) for a <= m, at least NEGLIGIBLE; equals count as equal though they be infinite."""
    ordinary = tl.abs(m) < INFINITY
    below = tl.where(ordinary, a, 0.0) - tl.where(ordinary, m, 0.0)
    return tl.where(a == m, 0.0, tl.where(ordinary, tl.maximum(below, NEGLIGIBLE), NEGLIGIBLE))


@triton.jit
def merge_states(m, i, m2, s, t):
    """The state of rows from those of their tiles, [ROWS, TILES] to [ROWS]; an absent tile is (-inf, NOWHERE, -inf, 0, 0)."""
    clean = tl.where(m != m, INFINITY, m)
    top = tl.max(clean, 1)
    nan = tl.min(tl.where(m != m, i, NOWHERE), 1)
    first = tl.min(tl.where(clean == top[:, None], i, NOWHERE), 1)
    second = tl.max(tl.where(i == first[:, None], m2, clean), 1)
    y = relative(clean, top[:, None])
    w = tl.exp(y)
    total = tl.sum(w * s, 1)
    weighted = tl.sum(w * (t + y * s), 1)
    poisoned = nan < NOWHERE
    return tl.where(poisoned, float("nan"), top), tl.where(poisoned, nan, first), second, total, weighted


@triton.jit
def store_state(states, r, tile, tiles, live, m, i, m2, s, t):
    """states: pointers to m, m2, s, t (fp32) and i (int32), each [rows, tiles]."""
    at = r * tiles + tile
    tl.store(states[0] + at, m, mask=live)
    tl.store(states[1] + at, m2, mask=live)
    tl.store(states[2] + at, s, mask=live)
    tl.store(states[3] + at, t, mask=live)
    tl.store(states[4] + at, i, mask=live)


@triton.jit
def load_states(states, r, tiles, live, TILES: tl.constexpr):
    """(m, i, m2, s, t), each [ROWS, TILES]. Past L1: other programs may have stored them in this very launch."""
    tile = tl.arange(0, TILES)[None, :]
    at = r[:, None] * tiles + tile
    there = live[:, None] & (tile < tiles)
    m = tl.load(states[0] + at, mask=there, other=-INFINITY, cache_modifier=".cg")
    m2 = tl.load(states[1] + at, mask=there, other=-INFINITY, cache_modifier=".cg")
    s = tl.load(states[2] + at, mask=there, other=0.0, cache_modifier=".cg")
    t = tl.load(states[3] + at, mask=there, other=0.0, cache_modifier=".cg")
    i = tl.load(states[4] + at, mask=there, other=NOWHERE, cache_modifier=".cg")
    return m, i, m2, s, t
