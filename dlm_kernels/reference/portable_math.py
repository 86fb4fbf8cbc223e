"""exp and log spelled out operation by operation, so that every backend gets the same bits.

A sampled token is an argmax over noised logits. If two backends' logarithms differed in the last place, they would now and
then pick different tokens. Each line below is one fp32 operation with one rounding, in this order; a backend must not contract
a product and a sum into one. The polynomials and the split of ln 2 are those of Cephes (`logf`, `expf`; S. Moshier).
"""

from __future__ import annotations

import torch
from torch import Tensor

LN2_HIGH = 0.693359375  # nine bits: a product with an exponent is exact
LN2_LOW = -2.12194440e-4
LOG2_E = 1.44269504
SQRT_HALF = 0.70710677

LOG_COEFFICIENTS = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
EXP_COEFFICIENTS = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
)  # fmt: skip
LOG1P_COEFFICIENTS = (0.2, 0.25, 0.33333334, 0.5, 1.0)
LOG1P_SERIES_BELOW = 0.0625  # the fifth term's successor is below fp32 resolution there

EXP_UNDERFLOW = -87.0  # below, 2^n would not be a normal number


def horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """((c0 x + c1) x + c2) ..., a product and a sum at a time."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x
        value = value + coefficient
    return value


def log(y: Tensor) -> Tensor:
    """Natural logarithm of a positive normal fp32 tensor."""
    bits = y.view(torch.int32)
    exponent = ((bits >> 23) & 255) - 126
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).view(torch.float32)  # [0.5, 1)
    low = mantissa < SQRT_HALF
    e = (exponent - low.to(torch.int32)).to(torch.float32)
    m = torch.where(low, (mantissa + mantissa) - 1, mantissa - 1)  # [sqrt(1/2), sqrt(2)) - 1
    z = m * m
    r = (horner(m, LOG_COEFFICIENTS) * m) * z
    r = r + e * LN2_LOW
    r = r - z * 0.5
    r = m + r
    return r + e * LN2_HIGH


def exp(x: Tensor) -> Tensor:
    """e^x of an fp32 tensor that is 0 or below; 0 below -87."""
    vanishes = ~(x >= EXP_UNDERFLOW)
    x = torch.where(vanishes, torch.zeros_like(x), x)
    n = torch.floor(x * LOG2_E + 0.5)
    x = x - n * LN2_HIGH
    x = x - n * LN2_LOW
    y = horner(x, EXP_COEFFICIENTS) * (x * x)
    y = y + x
    y = y + 1
    power = ((n.to(torch.int32) + 127) << 23).view(torch.float32)  # 2^n
    return torch.where(vanishes, torch.zeros_like(x), y * power)


def exponential_from_uniform(u: Tensor) -> Tensor:
    """-log(1 - u), without the cancellation of 1 - u where u is small."""
    series = u * horner(u, LOG1P_COEFFICIENTS)
    return torch.where(u < LOG1P_SERIES_BELOW, series, -log(1 - u))


def gumbel_from_uniform(u: Tensor) -> Tensor:
    """-log(-log(1 - u)): a standard Gumbel variable from a uniform one, finest where it is large."""
    return -log(exponential_from_uniform(u))
