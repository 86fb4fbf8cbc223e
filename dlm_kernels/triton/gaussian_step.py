"""One reverse step of Gaussian diffusion: every element is read once and written once; coefficients of a batch row in fp64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.reference import philox as spec
from dlm_kernels.triton.philox import interleave_four, keyed_words
from dlm_kernels.triton.portable_math import exponential_from_uniform, narrow, uniform_from_word, widen
from dlm_kernels.triton.rows import program_rows
from dlm_kernels.triton.runtime import launch, strided, tiling, warps
from dlm_kernels.triton.transitions import keys_of, per_batch_row

NORMAL_STREAM = tl.constexpr(spec.NORMAL_STREAM)
TWO_PI = tl.constexpr(6.2831853071795864)
BLOCK = 1024  # elements that a program moves
MOST_ROWS = 16  # positions of those, where D is small


@triton.jit
def sine_cosine_of_turn(u):
    """sin and cos of 2 pi u, u in (0, 1): the nearest quarter turn is taken off exactly; the rest by Cephes' polynomials."""
    quarter = (u * 4.0 + 0.5).to(tl.int32)
    x = (u - quarter.to(tl.float32) * 0.25) * TWO_PI
    z = x * x
    s = -1.9515295891e-4 * z + 8.3321608736e-3
    s = (s * z - 1.6666654611e-1) * z * x + x
    c = 2.443315711809948e-5 * z - 1.388731625493765e-3
    c = (c * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    odd = (quarter & 1) != 0
    sine, cosine = tl.where(odd, c, s), tl.where(odd, s, c)
    return tl.where((quarter & 2) != 0, -sine, sine), tl.where(((quarter + 1) & 2) != 0, -cosine, cosine)


@triton.jit
def normal_pair(first, second):
    """Two standard normal numbers from two words (Box-Muller)."""
    radius = tl.sqrt_rn(2.0 * exponential_from_uniform(uniform_from_word(first)))
    sine, cosine = sine_cosine_of_turn(uniform_from_word(second))
    return radius * cosine, radius * sine


@triton.jit
def positive_root(square):
    return tl.sqrt(tl.where(square > 0.0, square, 0.0))


@triton.jit
def second_order_half(alpha_t, sigma_t, alpha_s, sigma_s, alpha_before, sigma_before):
    """1 / 2r, r = h_before / h: half a step along the last change of the prediction; 0 where a lambda is infinite."""
    finite = (alpha_t > 0.0) & (alpha_s > 0.0) & (sigma_s > 0.0) & (alpha_before > 0.0)
    at_t = tl.log(tl.where(finite, alpha_t, 1.0)) - tl.log(sigma_t)
    h = tl.log(tl.where(finite, alpha_s, 1.0)) - tl.log(tl.where(finite, sigma_s, 1.0)) - at_t
    h_before = at_t - (tl.log(tl.where(finite, alpha_before, 1.0)) - tl.log(sigma_before))
    finite &= h_before != 0.0
    return tl.where(finite, h / (2.0 * tl.where(finite, h_before, 1.0)), 0.0)


@triton.jit
def elements(tensor, b, l, d):  # noqa: E741 - the name it has everywhere
    """Pointers [ROWS, BLOCK]; tensor: pointer and three strides."""
    return (tensor[0] + b * tensor[1] + l * tensor[2])[:, None] + d.to(tl.int64) * tensor[3]


@triton.jit(do_not_specialize=["length", "count"])
def gaussian_step_kernel(
    x, denoised, levels, denoised_before, levels_before, eligible, keys, length, count, dimension,
    NOISY: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    _, b, l, live = program_rows(length, count, eligible, ROWS)  # noqa: E741
    d = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = live[:, None] & (d < dimension)
    alpha_t = per_batch_row(levels[0], b, live)
    sigma_t = tl.where(live, per_batch_row(levels[1], b, live), 1.0)
    alpha_s, sigma_s = per_batch_row(levels[2], b, live), per_batch_row(levels[3], b, live)
    eta = per_batch_row(levels[4], b, live)

    data = widen(tl.load(elements(denoised, b, l, d), mask=inside, other=0.0))
    if denoised_before is not None:
        half = second_order_half(
            alpha_t, sigma_t, alpha_s, sigma_s, per_batch_row(levels_before[0], b, live),
            tl.where(live, per_batch_row(levels_before[1], b, live), 1.0),
        )  # fmt: skip
        change = data - widen(tl.load(elements(denoised_before, b, l, d), mask=inside, other=0.0))
        data += half.to(tl.float32)[:, None] * change

    # Standard deviation of q(x_s | x_t, x_0), times eta; what is left of sigma_s points along the predicted noise.
    signal = alpha_s > 0.0
    ratio = tl.where(signal, alpha_t / tl.where(signal, alpha_s, 1.0), 1.0)
    added = positive_root(sigma_t * sigma_t - ratio * ratio * (sigma_s * sigma_s))
    spread = eta * sigma_s * added / sigma_t
    direction = positive_root(sigma_s * sigma_s - spread * spread)
    of_x = (direction / sigma_t).to(tl.float32)[:, None]
    of_data = (alpha_s - direction * alpha_t / sigma_t).to(tl.float32)[:, None]

    at = elements(x, b, l, d)
    after = of_x * widen(tl.load(at, mask=inside, other=0.0)) + of_data * data
    if NOISY:
        seed, row_ids, step = keys_of(keys, b, l, live)
        blocks = tl.program_id(1) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)[None, :]
        w0, w1, w2, w3 = keyed_words(seed[:, None], row_ids[:, None], step[:, None], blocks, NORMAL_STREAM)
        z0, z1 = normal_pair(w0, w1)
        z2, z3 = normal_pair(w2, w3)
        after += spread.to(tl.float32)[:, None] * interleave_four(z0, z1, z2, z3, ROWS, BLOCK)
    tl.store(at, narrow(after, x[0].dtype.element_ty), mask=inside)


def gaussian_step_(
    x: Tensor,
    denoised: Tensor,
    alpha_t: Tensor,
    sigma_t: Tensor,
    alpha_s: Tensor,
    sigma_s: Tensor,
    eta: Tensor,
    denoised_before: Tensor | None,
    alpha_before: Tensor | None,
    sigma_before: Tensor | None,
    eligible: Tensor | None,
    noisy: bool,
    seed: Tensor,
    row_ids: Tensor,
    step: Tensor,
) -> None:
    """See the reference. Allocates nothing, so it is its own `launch_gaussian_step_`."""
    _, length, dimension = x.shape
    count = x.shape[0] * length
    shape = tiling(dimension, BLOCK, MOST_ROWS)
    levels = tuple((level, level.stride(0)) for level in (alpha_t, sigma_t, alpha_s, sigma_s, eta))
    before = levels_before = None
    if denoised_before is not None and alpha_before is not None and sigma_before is not None:
        before = (denoised_before, *denoised_before.stride())
        levels_before = tuple((level, level.stride(0)) for level in (alpha_before, sigma_before))
    launch(
        gaussian_step_kernel, (triton.cdiv(count, shape.rows), shape.tiles), (x, *x.stride()),
        (denoised, *denoised.stride()), levels, before, levels_before, strided(eligible),
        tuple(strided(key) for key in (seed, row_ids, step)), length, count, dimension,
        num_warps=warps(shape.rows * shape.block, per_thread=8), NOISY=noisy, ROWS=shape.rows, BLOCK=shape.block,
    )  # fmt: skip


def specimens() -> Iterator[tuple[str, Callable[[], object]]]:
    def on(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    key, level, live = on(torch.int64, 4, 64), on(torch.float64, 4), on(torch.bool, 4, 64)
    move: Callable[..., None] = gaussian_step_
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        for dimension in (16, 768):
            x = on(dtype, 4, 64, dimension)
            first: tuple[Any, ...] = (x, x, *(level,) * 5, None, None, None)
            second: tuple[Any, ...] = (x, x, *(level,) * 5, x, level, level)
            yield f"D={dimension} {name} noisy", partial(move, *first, None, True, key, key, key)
            yield f"D={dimension} {name}", partial(move, *first, None, False, key, key, key)
            yield f"D={dimension} {name} second order", partial(move, *second, live, False, key, key, key)
