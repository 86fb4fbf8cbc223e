"""A quota or all above a threshold, as SDAR and LLaDA2 have it."""

import pytest
import torch
from fakes import SpikeModel
from plain_rows import PlainRow, agree, best, cases

from dlm_kernels import InvalidArgumentError
from dlm_samplers import LLaDASampler, LowConfidenceDynamic, Threshold


def quotas(block, steps):
    return [block // steps + (step < block % steps) for step in range(steps)]


def plain(model, prompt, new, block, tau, steps):
    row = PlainRow(model, prompt, new, block)
    at, step = None, 0
    while row.masked():
        begin, end = row.next_block()
        step = 0 if at != begin else step + 1
        at = begin
        row.forward()
        masked = row.masked(begin, end)
        sure = [i for i in masked if row.confidence[i] > tau]
        quota = quotas(block, steps)[step]
        row.commit(sure if len(sure) >= quota else best(masked, row.confidence, quota))
    return row


@pytest.mark.parametrize(("tau", "steps"), [(0.6, 3), (0.85, 8), (0.5, 5), (2.0, 3), (2.0, 2), (0.0, 4)])
def test_the_path_is_upstreams(tau, steps):
    for model, prompts, budgets in cases(30, seed=steps):
        rows = [plain(model, prompt, new, 8, tau, steps) for prompt, new in zip(prompts, budgets, strict=True)]
        sampler = LLaDASampler(model, policy=LowConfidenceDynamic(tau, steps))
        agree(sampler.generate(prompts, max_new_tokens=budgets, block_length=8), prompts, budgets, rows)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_without_steps_it_is_a_strict_threshold(temperature):
    model = SpikeModel(3)
    settings = {"max_new_tokens": 20, "temperature": temperature, "seed": 4}
    one = LLaDASampler(model, policy=LowConfidenceDynamic(0.7)).generate([[1, 2], [3]], **settings)
    if temperature == 0:
        other = LLaDASampler(model, policy=Threshold(0.7, strict=True)).generate([[1, 2], [3]], **settings)
        assert torch.equal(one.sequences, other.sequences)
    assert int(one.nfe.max()) <= 20


def test_its_probability_is_that_of_the_distribution_drawn_from():
    """A filter to one token makes every token certain."""
    sampler = LLaDASampler(SpikeModel(3), policy=LowConfidenceDynamic(0.99))
    out = sampler.generate([[1, 2]], max_new_tokens=20, block_length=20, temperature=1.0, top_k=1)
    assert out.nfe.tolist() == [1]


@pytest.mark.parametrize("arguments", [{"tau": -0.1}, {"tau": (0.5, float("nan"))}, {"denoising_steps": 0}])
def test_bad_parameters_are_named(arguments):
    with pytest.raises(InvalidArgumentError, match=next(iter(arguments))):
        LowConfidenceDynamic(**arguments)
