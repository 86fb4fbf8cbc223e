"""The arithmetic of `reference/portable_math.py` and `reference/philox.py`, a number at a time, bit for bit.

Every constant is an explicit float32 or uint: a bare literal would promote the expression to 64 bits. No branches, only selects
between numbers that are there anyway: then LLVM turns a loop over these into vector code.
"""

from __future__ import annotations

import numpy as np

from dlm_kernels.numba.runtime import bits_float, float_bits, jit
from dlm_kernels.reference import philox
from dlm_kernels.reference import portable_math as spec

f32, u32, u64 = np.float32, np.uint32, np.uint64

ZERO, HALF, ONE = f32(0), f32(0.5), f32(1)
LN2_HIGH, LN2_LOW = f32(spec.LN2_HIGH), f32(spec.LN2_LOW)
LOG2_E, SQRT_HALF = f32(spec.LOG2_E), f32(spec.SQRT_HALF)
EXP_UNDERFLOW = f32(spec.EXP_UNDERFLOW)
SERIES_BELOW = f32(spec.LOG1P_SERIES_BELOW)
L0, L1, L2, L3, L4, L5, L6, L7, L8 = (f32(c) for c in spec.LOG_COEFFICIENTS)
E0, E1, E2, E3, E4, E5 = (f32(c) for c in spec.EXP_COEFFICIENTS)
P0, P1, P2, P3, P4 = (f32(c) for c in spec.LOG1P_COEFFICIENTS)

U_SCALE, U_SHIFT, U_LARGEST = f32(2.0**-32), f32(2.0**-33), f32(philox.LARGEST_UNIFORM)
MULTIPLIER_0, MULTIPLIER_1 = u64(philox.MULTIPLIER_0), u64(philox.MULTIPLIER_1)
WEYL_0, WEYL_1 = u64(philox.WEYL_0), u64(philox.WEYL_1)
MASK, SHIFT, STREAM_SHIFT = u64(philox.MASK), u64(32), u64(24)
ROUNDS = philox.ROUNDS

EXPONENT_SHIFT, EXPONENT_MASK, MANTISSA_MASK = u32(23), u32(255), u32(0x7FFFFF)
HALF_BITS = u32(0x3F000000)


@jit
def log(y):
    bits = float_bits(y)
    m = bits_float(u32((bits & MANTISSA_MASK) | HALF_BITS))
    small = m < SQRT_HALF
    e = np.int32((bits >> EXPONENT_SHIFT) & EXPONENT_MASK) - (np.int32(127) if small else np.int32(126))
    m = (m + (m if small else ZERO)) - ONE
    z = m * m
    p = (((((((L0 * m + L1) * m + L2) * m + L3) * m + L4) * m + L5) * m + L6) * m + L7) * m + L8
    r = (p * m) * z
    r = r + f32(e) * LN2_LOW
    r = r - z * HALF
    r = m + r
    return r + f32(e) * LN2_HIGH


@jit
def exp(x):
    if not x >= EXP_UNDERFLOW:
        return f32(0)
    n = f32(np.floor(x * LOG2_E + HALF))
    x = x - n * LN2_HIGH
    x = x - n * LN2_LOW
    p = ((((E0 * x + E1) * x + E2) * x + E3) * x + E4) * x + E5
    y = p * (x * x)
    y = y + x
    y = y + ONE
    return y * bits_float(u32((np.int32(n) + np.int32(127)) << np.int32(23)))


@jit
def uniform_from_word(word):
    u = f32(word) * U_SCALE + U_SHIFT
    return u if u < U_LARGEST else U_LARGEST


@jit
def exponential_from_uniform(u):
    series = u * ((((P0 * u + P1) * u + P2) * u + P3) * u + P4)
    otherwise = -log(ONE - u)
    return series if u < SERIES_BELOW else otherwise


@jit
def gumbel_from_uniform(u):
    return -log(exponential_from_uniform(u))


@jit
def keyed_words(seed, row_id, step, block, stream):
    """Four words of Philox4x32-10. int64 keys, block and stream uint64."""
    key, row, count = u64(seed), u64(row_id), u64(step)
    k0, k1 = key & MASK, key >> SHIFT
    c0, c1, c2, c3 = (stream << STREAM_SHIFT) | block, row & MASK, count & MASK, row >> SHIFT
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c2 = (product1 >> SHIFT) ^ c1 ^ k0, (product0 >> SHIFT) ^ c3 ^ k1
        c1, c3 = product1 & MASK, product0 & MASK
        k0, k1 = (k0 + WEYL_0) & MASK, (k1 + WEYL_1) & MASK
    return c0, c1, c2, c3
