"""LocalLeap's rule, position by position."""

import pytest
import torch
from fakes import SpikeModel
from row_by_row import VOCAB, assert_same_path, every_setting

from dlm_kernels import InvalidArgumentError
from dlm_samplers import LLaDASampler, LocalLeap, Threshold


def leap(tau, low, radius):
    def rule(step):
        c = step.confidence
        anchors = [i for i in step.masked if c[i] >= tau]
        near = {j for i in anchors for j in range(i - radius, i + radius + 1)}
        return {i for i in step.masked if c[i] >= (low if i in near else tau)} | set(step.best())

    return rule


@every_setting
@pytest.mark.parametrize(("tau", "low", "radius"), [(0.7, 0.2, 1), (0.5, 0.3, 4), (0.8, 0.1, 40), (0.6, 0.2, 0)])
def test_the_path_is_local_leap(tau, low, radius, block_length, temperature, dream):
    for seed in range(5):
        assert_same_path(
            LocalLeap(tau, low, radius),
            lambda: leap(tau, low, radius),
            model=SpikeModel(seed, vocab=VOCAB),
            block_length=block_length,
            temperature=temperature,
            seed=seed,
            dream=dream,
        )


def test_without_reach_it_is_the_threshold_and_reach_saves_forwards():
    model = SpikeModel(2, vocab=VOCAB)
    prompts = torch.arange(8)[:, None]
    settings = {"max_new_tokens": 32, "block_length": 32}
    plain = LLaDASampler(model, policy=Threshold(0.8)).generate(prompts, **settings)
    no_reach = LLaDASampler(model, policy=LocalLeap(0.8, 0.1, radius=0)).generate(prompts, **settings)
    assert torch.equal(no_reach.sequences, plain.sequences)
    wide = LLaDASampler(model, policy=LocalLeap(0.8, 0.3, radius=8)).generate(prompts, **settings)
    assert wide.nfe.sum() < plain.nfe.sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"tau": 0.0}, "tau must"), ({"tau_low": -1.0}, "tau_low must"), ({"radius": -1}, "radius must be >= 0")],
)
def test_bad_parameters_are_named(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        LocalLeap(**arguments)


def test_defaults_are_the_authors():
    assert LocalLeap() == LocalLeap(tau=0.9, tau_low=0.75, radius=4)
