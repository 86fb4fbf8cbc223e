"""A threshold on margins."""

import numpy as np
import pytest
import torch
from fakes import SpikeModel
from row_by_row import VOCAB, assert_same_path, every_setting

from dlm_kernels import InvalidArgumentError
from dlm_samplers import LLaDASampler, Margin, Threshold


def lead(tau):
    def rule(step):
        top = np.sort(step.probs, axis=-1)
        margin = top[:, -1] - top[:, -2]
        return {i for i in step.masked if margin[i] >= tau} | set(step.best(score=margin))

    return rule


@every_setting
@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_the_path_is_the_margins(tau, block_length, temperature, dream):
    for seed in range(8):
        assert_same_path(
            Margin(tau),
            lambda: lead(tau),
            model=SpikeModel(seed, vocab=VOCAB),
            block_length=block_length,
            temperature=temperature,
            seed=seed,
            dream=dream,
        )


def test_it_asks_for_more_than_a_confidence_of_tau():
    model = SpikeModel(2, vocab=VOCAB)
    prompts = torch.arange(8)[:, None]
    settings = {"max_new_tokens": 32, "block_length": 32}
    margin = LLaDASampler(model, policy=Margin(0.5)).generate(prompts, **settings)
    confidence = LLaDASampler(model, policy=Threshold(0.5)).generate(prompts, **settings)
    assert margin.nfe.sum() > confidence.nfe.sum()


@pytest.mark.parametrize("tau", [0.0, 1.5, (0.5, float("nan"))])
def test_bad_parameters_are_named(tau):
    with pytest.raises(InvalidArgumentError, match="tau must be in"):
        Margin(tau)
