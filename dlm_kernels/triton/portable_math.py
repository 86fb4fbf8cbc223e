"""The arithmetic of `reference/portable_math.py` on blocks, bit for bit.

Kernels that call these compile with `enable_fp_fusion=False` (`runtime.launch` sees to it) and divide with `tl.div_rn`: a
contracted multiply-add or an approximate quotient would round differently.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dlm_kernels.reference import philox
from dlm_kernels.reference import portable_math as spec

LN2_HIGH, LN2_LOW = tl.constexpr(spec.LN2_HIGH), tl.constexpr(spec.LN2_LOW)
LOG2_E, SQRT_HALF = tl.constexpr(spec.LOG2_E), tl.constexpr(spec.SQRT_HALF)
EXP_UNDERFLOW = tl.constexpr(spec.EXP_UNDERFLOW)
SERIES_BELOW = tl.constexpr(spec.LOG1P_SERIES_BELOW)
L0, L1, L2, L3, L4, L5, L6, L7, L8 = (tl.constexpr(c) for c in spec.LOG_COEFFICIENTS)
E0, E1, E2, E3, E4, E5 = (tl.constexpr(c) for c in spec.EXP_COEFFICIENTS)
P0, P1, P2, P3, P4 = (tl.constexpr(c) for c in spec.LOG1P_COEFFICIENTS)
U_SCALE, U_SHIFT = tl.constexpr(2.0**-32), tl.constexpr(2.0**-33)
LARGEST_UNIFORM = tl.constexpr(philox.LARGEST_UNIFORM)


@triton.jit
def widen(x):
    """fp32, bf16 or fp16 to fp32, exactly. bf16 by its bits: the interpreter's own conversion loses subnormal numbers."""
    if x.dtype == tl.bfloat16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """fp32 to fp32, bf16 or fp16, to nearest even. bf16 by its bits, again for the interpreter."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        half = tl.where(x != x, 0x7FC0, rounded).to(tl.uint16)
        x = half.to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def log(y):
    """Natural logarithm of positive normal fp32 numbers."""
    bits = y.to(tl.int32, bitcast=True)
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)  # [0.5, 1)
    low = mantissa < SQRT_HALF
    e = (((bits >> 23) & 255) - 126 - low.to(tl.int32)).to(tl.float32)
    m = tl.where(low, mantissa + mantissa, mantissa) - 1.0
    z = m * m
    p = (((((((m * L0 + L1) * m + L2) * m + L3) * m + L4) * m + L5) * m + L6) * m + L7) * m + L8
    r = (p * m) * z
    r = r + e * LN2_LOW
    r = r - z * 0.5
    r = m + r
    return r + e * LN2_HIGH


@triton.jit
def exp(x):
    """e^x of fp32 numbers that are 0 or below; 0 below -87 and for NaN."""
    counts = x >= EXP_UNDERFLOW
    x = tl.where(counts, x, 0.0)
    n = tl.floor(x * LOG2_E + 0.5)
    x = x - n * LN2_HIGH
    x = x - n * LN2_LOW
    y = (((((x * E0 + E1) * x + E2) * x + E3) * x + E4) * x + E5) * (x * x)
    y = y + x
    y = y + 1.0
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)  # 2^n
    return tl.where(counts, y * power, 0.0)


@triton.jit
def uniform_from_word(word):
    """uint32 to fp32 in (0, 1)."""
    u = word.to(tl.float32) * U_SCALE + U_SHIFT
    return tl.minimum(u, LARGEST_UNIFORM)


@triton.jit
def exponential_from_uniform(u):
    """-log(1 - u)."""
    series = u * ((((u * P0 + P1) * u + P2) * u + P3) * u + P4)
    return tl.where(u < SERIES_BELOW, series, -log(1.0 - u))


@triton.jit
def gumbel_from_uniform(u):
    """-log(-log(1 - u))."""
    return -log(exponential_from_uniform(u))


@triton.jit
def ordered_key(x):
    """int32 that orders like the fp32 number, -0 and 0 alike. Not for NaN."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
