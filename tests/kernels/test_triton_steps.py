"""Steps and row ops on Triton as a GPU runs them: a row per program, a row's tiles in several. In the interpreter's process."""

import os

import pytest
import torch
from tolerances import assert_equal

from dlm_kernels import (
    absorbing_step_,
    cosine_rows,
    gather_rows,
    gaussian_step_,
    scatter_rows_,
    score_entropy_step_,
    topk_kl,
    uniform_step_,
)

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 from the start", allow_module_level=True)

from dlm_kernels.triton import runtime

MASK = 5
LEVELS = {"alpha_t": 0.3, "alpha_s": 0.6}
NOISE = {"alpha_t": 0.6, "sigma_t": 0.8, "alpha_s": 0.8, "sigma_s": 0.6}
STEPS = {
    "absorbing": lambda t, x, **o: absorbing_step_(t, x, mask_id=MASK, sigma=0.2, top_p=0.9, **LEVELS, **o),
    "posterior": lambda t, x, **o: uniform_step_(t, x, denoiser="posterior", **LEVELS, **o),
    "leave_one_out": lambda t, x, **o: uniform_step_(t, x, denoiser="leave_one_out", top_k=900, **LEVELS, **o),
    "absorb": lambda t, x, **o: score_entropy_step_(
        t, x, graph="absorb", method="analytic", mask_id=MASK, delta_sigma=0.01, **o
    ),
    "uniform": lambda t, x, **o: score_entropy_step_(t, x, graph="uniform", method="analytic", delta_sigma=0.2, **o),
    "euler": lambda t, x, **o: score_entropy_step_(t, x, graph="uniform", delta_sigma=0.2, **o),
}


@pytest.fixture(params=[1, 132])
def as_on_a_gpu(request, monkeypatch):
    """All tiles of a row in one program, or each in its own."""
    monkeypatch.setattr(runtime, "INTERPRETED_ELEMENTS", 0)
    monkeypatch.setattr(runtime, "multiprocessors", lambda device: request.param)


@pytest.mark.parametrize("name", STEPS)
def test_steps_over_several_tiles(as_on_a_gpu, name):
    """Peaked rows, where most tiles are skipped, flat ones, and winners in the last tile."""
    vocabulary = 9000
    tokens, logits = torch.randint(vocabulary, (3, 4)), torch.randn(3, 4, vocabulary)
    tokens[:, 1:] = MASK
    logits[0, :, 8999] = 30.0
    logits[1, 2, 4500:] += 6.0
    got, wanted = tokens.clone(), tokens.clone()
    changed = STEPS[name](got, logits, backend="triton")
    assert_equal("changed", changed, STEPS[name](wanted, logits, backend="reference"))
    assert_equal("tokens", got, wanted)
    assert changed.any()


@pytest.mark.parametrize("name", ["uniform", "euler", "absorb"])
def test_staying_wins_though_no_score_of_its_tile_could(as_on_a_gpu, name):
    tokens = torch.tensor([[5, 4000, 8999]]) if name != "absorb" else torch.full((1, 3), MASK)
    before = tokens.clone()
    changed = STEPS[name](tokens, torch.full((1, 3, 9000), -60.0), backend="triton")
    assert not changed.any()
    assert_equal("tokens", tokens, before)


def test_kept_tokens_over_several_tiles(as_on_a_gpu):
    logits = torch.randn(3, 9000) * 3
    logits[1, [8999, 4096, 0]] = 40.0
    before = topk_kl(logits.roll(1, 0), 5, backend="reference")
    got, wanted = (topk_kl(logits, 6, before=before, backend=name) for name in ("triton", "reference"))
    assert_equal("ids", got.ids, wanted.ids)
    torch.testing.assert_close(got.log_probs, wanted.log_probs, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(got.kl, wanted.kl, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dimension", [3, 5000])
def test_vectors_and_rows_in_tiles(as_on_a_gpu, dimension):
    a, b = torch.randn(2, 2, 5, dimension).unbind(0)
    assert_equal("cosine", cosine_rows(a, b, backend="triton"), cosine_rows(a, b, backend="reference"))
    positions = torch.tensor([[4, 0, -1, 4], [7, 3, 3, 1]])
    rows = gather_rows(a, positions, backend="triton")
    assert_equal("gathered", rows, gather_rows(a, positions, backend="reference"))
    got, wanted = b.clone(), b.clone()
    scatter_rows_(got, positions, rows + torch.arange(4)[:, None], backend="triton")
    scatter_rows_(wanted, positions, rows + torch.arange(4)[:, None], backend="reference")
    assert_equal("scattered", got, wanted)
    got, wanted = a.clone(), a.clone()
    for x, name in ((got, "triton"), (wanted, "reference")):
        gaussian_step_(x, b, eta=0.7, **NOISE, backend=name)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)
