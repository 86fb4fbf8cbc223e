"""A step on a fast backend against the reference, token by token, over rows with everything awkward in them."""

from typing import NamedTuple

import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import use_backend
from kernels.rows import awkward_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(v, dtype) for v in (1, 7, 1000) for dtype in DTYPES] + [(126464, torch.float32)]
every_shape = pytest.mark.parametrize(
    ("vocabulary", "dtype"), SHAPES, ids=lambda value: str(value).removeprefix("torch.")
)


class Problem(NamedTuple):
    canvas: torch.Tensor  # [B, 2 L]: the tokens are every other one
    logits: torch.Tensor  # [B, L, V], a window of a larger tensor
    eligible: torch.Tensor  # [B, L]
    alpha_t: torch.Tensor  # [B]
    alpha_s: torch.Tensor  # [B]
    scoring: dict  # a temperature, filters, keys for each position


def few(cases, vocabulary):
    """One of the cases where the reference takes long."""
    return cases[-1:] if vocabulary > 10_000 else cases


def random_problem(vocabulary, dtype, mask_id=None, scale=1.0):
    """Awkward rows and ordinary ones, from flat to peaked. Half of the tokens are `mask_id`, if one is given."""
    batch, length = (4, 2) if vocabulary > 10_000 else (8, 20)
    shape = (batch, length)
    x = torch.randn(*shape, vocabulary) * torch.rand(*shape, 1) * 6
    peaks = torch.randint(vocabulary, (*shape, 1))
    x.scatter_add_(2, peaks, torch.rand(*shape, 1) * 20)
    x = (x * scale).to(dtype)
    if vocabulary <= 10_000:
        awkward = awkward_rows(vocabulary, dtype)
        x[:2].view(-1, vocabulary)[: 2 * len(awkward)] = awkward.repeat(2, 1)
    window = torch.zeros(batch, length + 1, vocabulary + 3, dtype=dtype)[:, 1:, 1:-2]
    window.copy_(x)
    canvas = torch.randint(vocabulary, (batch, 2 * length))
    canvas[:, ::2] = torch.where(torch.rand(shape) < 0.5, peaks[..., 0], canvas[:, ::2])
    if mask_id is not None:
        canvas[torch.rand(canvas.shape) < 0.6] = mask_id
    alpha_t = torch.rand(batch, dtype=torch.float64)
    alpha_t[0] = 0.0
    alpha_s = alpha_t + (1 - alpha_t) * torch.rand(batch, dtype=torch.float64)
    alpha_s[1] = 1.0
    scoring = {
        "temperature": torch.rand(shape) * 2 * (torch.rand(shape) < 0.8),
        "top_k": torch.randint(0, 9, shape),
        "top_p": (torch.rand(shape) * 1.3).clamp(0.01, 1),
        "seed": torch.randint(-(2**62), 2**62, shape),
        "row_ids": torch.randint(2**62, shape),
        "step": torch.randint(2**31, shape),
    }
    return Problem(canvas, window, torch.rand(shape) < 0.9, alpha_t, alpha_s, scoring)


def assert_reference_tokens(step, problem, backend):
    """`step(tokens, logits)` writes and returns the same on this backend as on the reference, on one thread and on two."""
    wanted = problem.canvas.clone()
    logits = problem.logits.clone()
    with use_backend("reference"):
        flags = step(wanted[:, ::2], problem.logits)
    for threads in (1, 2):
        torch.set_num_threads(threads)  # the fixture `small_tensors` puts it back
        got = problem.canvas.clone()
        with use_backend(backend):
            assert_equal(f"changed, {threads} threads", step(got[:, ::2], problem.logits), flags)
        assert_equal(f"canvas, {threads} threads", got, wanted)
    assert_equal("logits", problem.logits, logits)
    return flags
