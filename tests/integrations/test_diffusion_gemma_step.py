"""The fused step of DiffusionGemma's sampler: what it holds, how often it reads, and when it calls a canvas stable."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

pytest.importorskip(
    "transformers.models.diffusion_gemma", reason="no transformers >= 5.11 (pip install 'dlm-kernels[hf]')"
)

from keyed_gemma import prompts
from transformers.models.diffusion_gemma.generation_diffusion_gemma import StableAndConfidentStoppingCriteria

from dlm_benches.integrations.diffusion_gemma import random_model
from dlm_benches.kernels.timing import torch_peak
from dlm_samplers.integrations.transformers.diffusion_gemma import DiffusionGemmaSampler
from dlm_samplers.integrations.transformers.diffusion_gemma_step import Draws, StableAndConfident, read_once


def test_no_temporaries_of_the_logits_size():
    """All of a generation takes what one forward takes, with the self-conditioning logits that it is given."""
    model = random_model(32768, 16)
    ids, size = prompts(0, 2, 5, padded=False)["input_ids"], 2 * 16 * 32768 * 4
    call = {"max_new_tokens": 16, "max_denoising_steps": 3}
    cache = model.generate(ids, **call).past_key_values
    canvas = torch.zeros(2, 16, dtype=torch.int64)

    @torch.no_grad()
    def forward():
        before = torch.zeros(2, 16, 32768)
        return model(decoder_input_ids=canvas, past_key_values=cache, self_conditioning_logits=before)

    alone = torch_peak(forward, lambda: None)
    sampler = DiffusionGemmaSampler(model)
    assert torch_peak(lambda: sampler.generate(ids, **call), lambda: None) < alone + size / 10
    assert (
        torch_peak(lambda: model.generate(ids, **call), lambda: None) > alone + 0.9 * size
    )  # the measure would see them


def test_the_step_holds_its_logits_and_those_before():
    """The forward apart: what it returns is tempered in place and kept for self-conditioning."""
    model, logits = random_model(32768, 16), torch.randn(2, 16, 32768)
    ids, call = prompts(0, 2, 5, padded=False)["input_ids"], {"max_new_tokens": 16, "max_denoising_steps": 3}

    def forward(**_):
        return SimpleNamespace(logits=logits.clone())

    with mock.patch.object(model, "forward", forward):
        sampler = DiffusionGemmaSampler(model)
        assert torch_peak(lambda: sampler.generate(ids, **call), lambda: None) < 2.1 * logits.nbytes
        assert torch_peak(lambda: model.generate(ids, **call), lambda: None) > 5 * logits.nbytes


def assert_reads_once(dtype, backend):
    logits = torch.randn(2, 16, 8192).to(dtype)
    draws = Draws(torch.tensor([1, 2]), torch.tensor([0, 0]), 16, 8192, 0.1)
    draws.initialize_canvas(2, logits.device)
    finished = torch.tensor([False, True])
    best, scores = read_once(logits, finished, draws, 1, backend)
    assert torch.equal(best[0], logits[0].argmax(-1))
    assert not torch.equal(scores.token[0], best[0])
    entropy = torch.distributions.Categorical(logits=logits[0].double()).entropy()
    torch.testing.assert_close(scores.entropy[0].double(), entropy, rtol=1e-5, atol=0)
    assert not any(field[1].any() for field in (best, scores.token, scores.entropy))
    return torch_peak(lambda: read_once(logits, finished, draws, 1, backend), lambda: None) / logits.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_reading_once(dtype):
    """The view that has every row twice is not copied."""
    assert assert_reads_once(dtype, None) < 0.1


@pytest.mark.slow
def test_reading_once_on_every_backend(fast_backend):
    taken = assert_reads_once(torch.float32, fast_backend)
    assert taken < 0.1 or fast_backend == "triton"  # its interpreter copies


@pytest.mark.parametrize("threshold", [0, 1, 2, 5])
def test_stability_is_the_original_s(threshold):
    """Canvases that now and then stay the same, over several canvases."""
    theirs = StableAndConfidentStoppingCriteria(threshold, 0.9)
    ours = StableAndConfident(threshold, 0.9)
    stops = 0
    for _ in range(30):
        theirs.reset()
        ours.reset()
        best = torch.zeros(6, 3, dtype=torch.int64)
        for _ in range(12):
            best = torch.where(torch.rand(6, 1) < 0.3, torch.randint(2, (6, 3)), best)
            logits = torch.randn(6, 3, 4) * 1.5
            entropy = torch.distributions.Categorical(logits=logits).entropy()
            got = ours(best, entropy)
            assert torch.equal(got, theirs(best, logits))
            stops += int(got.sum())
    assert 20 < stops < 30 * 12 * 6 - 20
