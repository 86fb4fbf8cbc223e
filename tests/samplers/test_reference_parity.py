"""Token-for-token equality of the samplers with the published ones, over many random models and settings."""

import random

import pytest
import torch
from fakes import TableModel, keyed_gumbel
from scipy.stats import chisquare

from dlm_benches.samplers.law import CanvasTable, ancestral_law, linear_shares
from dlm_samplers import DreamSampler, FixedQuota, LLaDASampler, ModelSpec, TimeGrid
from dlm_samplers.compat import dream, llada
from dlm_samplers.models.spec import DREAM
from dlm_samplers.reference import dream_generate, llada_generate, mdlm_generate

CASES = 130


def llada_case(case):
    rng = random.Random(case)
    model = TableModel(case, vocab=rng.choice([5, 11, 60]))
    batch, length = rng.randint(1, 4), rng.randint(1, 9)
    blocks, block_length = rng.randint(1, 3), rng.choice([1, 3, 4, 8])
    generator = torch.Generator().manual_seed(case)
    prompt = torch.randint(model.vocab - 1, (batch, length), generator=generator)
    mask = None
    if rng.random() < 0.4:
        mask = (torch.arange(length) >= torch.randint(length, (batch, 1), generator=generator)).long()
    steps = blocks * rng.randint(1, block_length + 2)
    settings = {
        "steps": steps,
        "gen_length": blocks * block_length,
        "block_length": block_length,
        "cfg_scale": rng.choice([0.0, 0.0, 0.7, 2.0]),
        "mask_id": model.mask,
    }
    return model, prompt, mask, settings


@pytest.mark.parametrize("case", range(CASES))
def test_llada_swap_equals_published_sampler(case):
    model, prompt, mask, settings = llada_case(case)
    expected = llada_generate(model, prompt, mask, **settings)
    assert torch.equal(llada.generate(model, prompt, mask, **settings), expected)


@pytest.mark.parametrize("case", range(60))
def test_llada_swap_equals_published_sampler_draw_by_draw(case):
    """Temperature above 0: the published function is given the keyed noise."""
    model, prompt, _, settings = llada_case(1000 + case)
    temperature = random.Random(case).choice([0.3, 1.0, 2.0])
    width = prompt.shape[1] + settings["gen_length"]
    noise = keyed_gumbel(case, torch.arange(len(prompt)), width, model.vocab)
    # The published loop counts its steps through; so does a row here as long as no step is left out.
    settings["steps"] = min(settings["steps"], settings["gen_length"])
    blocks = settings["gen_length"] // settings["block_length"]
    settings["steps"] = max(settings["steps"] // blocks, 1) * blocks
    model.table[:, model.mask] = -50.0  # no mask committed, so that no block ends late
    expected = llada_generate(model, prompt, temperature=temperature, gumbel=noise, **settings)
    got = llada.generate(model, prompt, temperature=temperature, seed=case, **settings)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("flag", ["logits_eos_inf", "confidence_eos_eot_inf"])
@pytest.mark.parametrize("case", range(10))
def test_llada_end_of_text_flags(flag, case, monkeypatch):
    monkeypatch.setattr(llada, "EOS_ID", 2)
    monkeypatch.setattr(llada, "EOT_ID", 3)
    model, prompt, mask, settings = llada_case(2000 + case)
    model.table[:, 2] += 4  # end of text is often the favourite
    expected = llada_generate(model, prompt, mask, eos_id=2, eot_id=3, **{flag: True}, **settings)
    got = llada.generate(model, prompt, mask, **{flag: True}, **settings)
    assert torch.equal(got, expected)
    assert not torch.equal(got, llada.generate(model, prompt, mask, **settings)) or settings["gen_length"] < 6


def dream_case(case):
    rng = random.Random(case)
    model = TableModel(case, vocab=rng.choice([6, 12, 50]))
    model.table[:, model.mask] = -50.0
    batch, length = rng.randint(1, 4), rng.randint(1, 8)
    generator = torch.Generator().manual_seed(case)
    prompt = torch.randint(model.vocab - 1, (batch, length), generator=generator)
    mask = None
    if rng.random() < 0.4:
        mask = (torch.arange(length) >= torch.randint(length, (batch, 1), generator=generator)).long()
    settings = {
        "max_new_tokens": rng.randint(1, 20),
        "steps": rng.randint(1, 25),
        "alg": rng.choice(["maskgit_plus", "topk_margin", "entropy"]),
        "top_p": rng.choice([None, 0.95, 0.6]),
        "top_k": rng.choice([None, 3]),
    }
    return model, prompt, mask, settings


@pytest.mark.parametrize("case", range(CASES))
def test_dream_swap_equals_published_sampler(case):
    model, prompt, mask, settings = dream_case(case)
    expected = dream_generate(model, prompt, mask, mask_id=model.mask, **settings)
    got = dream.diffusion_generate(model, prompt, attention_mask=mask, **settings)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("case", range(30))
def test_dream_swap_equals_published_sampler_draw_by_draw(case):
    model, prompt, _, settings = dream_case(3000 + case)
    width = prompt.shape[1] + settings["max_new_tokens"]
    by_step = settings["alg"] == "maskgit_plus"
    noise = keyed_gumbel(case, torch.arange(len(prompt)), width, model.vocab, by_step)
    expected = dream_generate(model, prompt, mask_id=model.mask, temperature=0.8, gumbel=noise, **settings)
    got = dream.diffusion_generate(model, prompt, temperature=0.8, seed=case, **settings)
    assert torch.equal(got, expected)


def test_dream_fills_unequal_blanks_without_touching_given_tokens():
    model = TableModel(5, vocab=9)
    model.table[:, model.mask] = -50.0
    prompt = torch.randint(8, (6, 12), generator=torch.Generator().manual_seed(0))
    blanks = torch.rand(6, 12, generator=torch.Generator().manual_seed(1)) < torch.linspace(0.1, 0.9, 6)[:, None]
    canvas = prompt.masked_fill(blanks, model.mask)
    got = dream.diffusion_generate(model, canvas, max_new_tokens=0, steps=5, alg="entropy")
    assert torch.equal(got[~blanks], prompt[~blanks])
    assert (got != model.mask).all()
    assert torch.equal(got, dream_generate(model, canvas, max_new_tokens=0, steps=5, alg="entropy", mask_id=model.mask))


def test_sampler_classes_default_to_the_published_samplers():
    model = TableModel(3)
    model.table[:, model.mask] = -50.0
    prompt = torch.randint(model.vocab - 1, (3, 4))
    expected = llada_generate(model, prompt, steps=16, gen_length=16, block_length=8, mask_id=model.mask)
    got = LLaDASampler(model).generate(prompt, max_new_tokens=16, block_length=8)
    assert torch.equal(got.sequences, expected)
    expected = dream_generate(model, prompt, steps=10, max_new_tokens=16, alg="maskgit_plus", mask_id=model.mask)
    got = DreamSampler(model).generate(prompt, max_new_tokens=16, steps=10)
    assert torch.equal(got.sequences, expected)
    margin = FixedQuota("margin", TimeGrid())
    got = DreamSampler(model, policy=margin, spec=ModelSpec(mask_id=model.mask, **DREAM))
    expected = dream_generate(model, prompt, steps=10, max_new_tokens=16, alg="topk_margin", mask_id=model.mask)
    assert torch.equal(got.generate(prompt, max_new_tokens=16, steps=10).sequences, expected)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("seed", range(10))
def test_mdlm_reference_skips_a_forward_when_no_row_of_the_batch_changed(batch, seed):
    model = TableModel(seed, vocab=6)
    x, steps = torch.full((batch, 3), model.mask), 24
    x[:, 0] = 1
    noise = torch.rand(steps, batch, 3, 6)
    settings = {"steps": steps, "mask_id": model.mask, "uniform": lambda step, shape: noise[step]}
    every = mdlm_generate(model, x, sees_time=True, **settings)
    assert model.calls == steps + 1
    model.calls = 0
    cached = mdlm_generate(model, x, **settings)
    assert torch.equal(cached, every)
    assert (cached != model.mask).all()
    assert (cached[:, 0] == 1).all()
    assert model.calls <= 2 * batch + 2  # a forward after each of at most two flips a row, the first, the last


def test_mdlm_reference_has_the_law_of_ancestral_sampling():
    """Chi-square over all outcomes; false alarm rate 1e-6."""
    model, rows, steps = CanvasTable(1, 2, 3), 4000, 3
    law = ancestral_law(model, linear_shares(steps))
    out = mdlm_generate(lambda x: model(x).clone(), torch.full((rows, 3), model.mask), steps=steps, mask_id=model.mask)
    counts = torch.bincount((out * 2 ** torch.arange(2, -1, -1)).sum(-1), minlength=8)
    assert chisquare(counts.numpy(), (law / law.sum() * rows).numpy()).pvalue > 1e-6
