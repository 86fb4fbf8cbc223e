"""Statistics of a row of fp32 logits in loops that LLVM turns into vector code.

What it needs for that: slices instead of index ranges (an index that may be negative is a branch), integers or fast math for
reductions (fp32 maxima and sums have a fixed order otherwise), and no branch. Of all this only the maximum decides a token, and
integers find it exactly; the order in which an fp32 sum is added up is the compiler's, and the same for every row.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from dlm_kernels.numba.runtime import bits_float, float_bits, jit

f32, u32, i32, i64, f64 = np.float32, np.uint32, np.int32, np.int64, np.float64

CHUNK = 2048  # a chunk stays in the first-level cache between its maximum and its sums
NEGLIGIBLE = f32(32)  # e^-32 V is below 2e-9: a chunk that far below the maximum changes no digit
NEGATIVE_INFINITY = f32(-math.inf)
LOWEST = f32(-87)  # near the last normal number of e^y
ZERO, ONE = f32(0), f32(1)

SIZE_BITS, INFINITY_KEY = i32(0x7FFFFFFF), i32(0x7F800000)
LEAST_KEY, MOST_KEY = i32(-(2**31)), i32(2**31 - 1)
NEGATIVE_INFINITY_KEY = i32(-0x7F800001)

# e^r for |r| <= log(2) / 2 with the least greatest relative error (9e-8), as in csrc/cpu/kernels_impl.h.
E0, E1, E2, E3, E4 = (f32(c) for c in (8.290272206e-3, 4.189816117e-2, 0.1666763872, 0.4999914765, 0.999999702))
LOG2_E, LN2 = f32(1.44269504), f32(0.69314718)
ROUNDING = f32(12582912)  # 1.5 2^23: adding it leaves an integer in the low bits
EXPONENT_SHIFT = u32(23)


@jit
def extremes(bits):
    """Highest and lowest key of fp32 numbers given as int32 bits. Keys order as the numbers do, NaNs beyond both infinities."""
    highest, lowest = LEAST_KEY, MOST_KEY
    for v in range(bits.size):
        key = i32(bits[v] ^ (i32(bits[v] >> 31) & SIZE_BITS))
        highest, lowest = max(highest, key), min(lowest, key)
    return highest, lowest


@jit
def number_of_key(key):
    return bits_float(u32(key if key >= 0 else i32(key ^ SIZE_BITS)))


@partial(jit, fastmath={"contract"})
def fast_exp(y):
    """e^y for y in [LOWEST, 0] within 2e-7. For sums; what decides tokens is `portable_math.exp`."""
    biased = y * LOG2_E + ROUNDING
    n = biased - ROUNDING
    r = y - n * LN2
    p = ((((E0 * r + E1) * r + E2) * r + E3) * r + E4) * r + ONE
    return bits_float(u32(float_bits(p) + u32(float_bits(biased) << EXPONENT_SHIFT)))


@partial(jit, fastmath={"reassoc", "nsz", "contract"})
def kept_sums(x, m, scale, least):
    """Sums of e^y and e^y y over y = (x - m) scale of the entries >= least."""
    s, t = ZERO, ZERO
    for v in range(x.size):
        y = (x[v] - m) * scale
        y = y if y > LOWEST else LOWEST
        e = fast_exp(y)
        e = e if x[v] >= least else ZERO
        s += e
        t += e * y
    return s, t


@jit
def summarise(x, sums, maxima, s, t):
    """(maximum, whether there is a NaN) of a row; fills `maxima` and, with `sums`, s and t of its chunks.

    The sums of a chunk are relative to its own maximum; those of chunks far below what came before are 0.
    """
    m, nan = NEGATIVE_INFINITY, False
    bits = x.view(np.int32)
    for c in range(maxima.size):
        begin, end = c * CHUNK, min((c + 1) * CHUNK, x.size)
        highest, lowest = extremes(bits[begin:end])
        nan |= highest > INFINITY_KEY or lowest < NEGATIVE_INFINITY_KEY
        maxima[c] = number_of_key(highest)
        m = max(m, maxima[c])
        s[c], t[c] = 0.0, 0.0
        if sums and maxima[c] > NEGATIVE_INFINITY and maxima[c] >= m - NEGLIGIBLE:
            s[c], t[c] = kept_sums(x[begin:end], maxima[c], ONE, NEGATIVE_INFINITY)
    return m, nan


@jit
def index_of_maximum(x, m, maxima):
    """The lowest index of the maximum."""
    for c in range(maxima.size):
        if maxima[c] >= m:
            for v in range(c * CHUNK, min((c + 1) * CHUNK, x.size)):
                if x[v] >= m:
                    return i64(v)
    return i64(0)


@jit
def second_highest(x, first, maxima):
    """The highest entry but that at `first`; -inf if there is none."""
    winner = first // CHUNK
    second = NEGATIVE_INFINITY
    for c in range(maxima.size):
        if c != winner:
            second = max(second, maxima[c])
    bits = x.view(np.int32)
    begin, end = winner * CHUNK, min((winner + 1) * CHUNK, x.size)
    for part in (bits[begin:first], bits[first + 1 : end]):
        if part.size:
            second = max(second, number_of_key(extremes(part)[0]))
    return second


@jit
def merged_sums(m, maxima, s, t):
    """What `summarise` left of each chunk, relative to the row's maximum."""
    total, weighted = 0.0, 0.0
    for c in range(maxima.size):
        if s[c] > 0.0:
            d = f64(maxima[c]) - f64(m)
            scale = math.exp(d)
            total += scale * s[c]
            weighted += scale * (t[c] + d * s[c])
    return total, weighted


@jit
def reshaped_sums(x, m, t, least, maxima):
    """Sums of e^y and e^y y over y = (x - m) / t of the entries >= least."""
    total, weighted = 0.0, 0.0
    scale = min(ONE / t, f32(3e38))  # finite, so that 0 scale is 0
    for c in range(maxima.size):
        if maxima[c] >= least and (maxima[c] - m) * scale >= LOWEST:
            part = kept_sums(x[c * CHUNK : min((c + 1) * CHUNK, x.size)], m, scale, least)
            total += f64(part[0])
            weighted += f64(part[1])
    return total, weighted
