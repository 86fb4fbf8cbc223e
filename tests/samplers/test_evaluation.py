"""What an evaluation says of tokens other than the proposed one."""

import pytest
import torch
from fakes import SpikeModel

from dlm_samplers import DreamSampler, LLaDASampler, Threshold


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("sampler_class", [LLaDASampler, DreamSampler])
def test_log_probability_is_of_the_distribution_of_the_confidence(sampler_class, temperature):
    seen = []

    class Asking(Threshold):
        def observe(self, evaluation, state):
            at = evaluation.scored
            seen.append(int(at.sum()))
            p = evaluation.log_probability(evaluation.scores.token).exp()
            torch.testing.assert_close(p[at], evaluation.scores.confidence[at], rtol=1e-5, atol=1e-7)
            return evaluation.scores

    sampler_class(SpikeModel(3), policy=Asking(0.5)).generate(
        [[1, 2], [3]], max_new_tokens=9, temperature=temperature, block_length=4
    )
    assert sum(seen) > 10
