"""Draft and verify gives the sequential sampler's tokens under every policy there is, with any parameters."""

import pytest
import torch
from compositions import EOS, POLICIES
from fakes import FickleModel, FirmModel, MoodyModel
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_samplers import DraftVerify, EndOfText, LLaDASampler


@pytest.mark.parametrize("kind", POLICIES, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_tokens_are_the_sequential_samplers(kind, data):
    policy = data.draw(POLICIES[kind])
    model = data.draw(st.sampled_from([FirmModel, MoodyModel, FickleModel]))(data.draw(st.integers(0, 50)), eos=EOS)
    parts = {"policy": policy, "stopping": data.draw(st.sampled_from([[], [EndOfText()]]))}
    prompts = [[1, 2, 4], [5], [4, 4]]
    asked = {
        "max_new_tokens": [16, 9, 0],
        "block_length": data.draw(st.sampled_from([4, 7, 32])),
        "temperature": data.draw(st.sampled_from([0.0, 0.7, 1.0])),
        "seed": data.draw(st.integers(0, 9)),
    }
    expected = LLaDASampler(model, **parts).generate(prompts, **asked)
    verify = DraftVerify(data.draw(st.integers(2, 9)))
    out = LLaDASampler(model, **parts, verify=verify).generate(prompts, **asked)
    assert torch.equal(out.sequences, expected.sequences)
    assert (out.nfe <= expected.nfe).all()
