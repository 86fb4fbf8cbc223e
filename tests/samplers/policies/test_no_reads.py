"""No policy waits for the device: nothing in a choice reads a value back."""

import pytest
import torch
from fakes import SpikeModel
from test_sampler import POLICIES
from torch.utils._python_dispatch import TorchDispatchMode

from dlm_samplers import LLaDASampler
from dlm_samplers.loop import Loop

READS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::masked_select", "aten::nonzero"}


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        assert name not in READS, name
        if name.startswith("aten::index"):
            assert not any(getattr(i, "dtype", None) is torch.bool for i in args[1]), "indexing by a mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("block_length", [None, 4])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_choice_reads_nothing_back(policy, temperature, block_length, monkeypatch):
    choose, chosen = Loop.choose, []

    def watched(self, evaluation, state):
        with NoReads():
            result = choose(self, evaluation, state)
        chosen.append(result[1])
        return result

    monkeypatch.setattr(Loop, "choose", watched)
    LLaDASampler(SpikeModel(1), policy=policy).generate(
        torch.zeros(2, 3, dtype=torch.long), max_new_tokens=8, block_length=block_length, temperature=temperature
    )
    assert chosen


def test_a_read_would_be_seen():
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReads():
        bool(torch.ones(1).any())
    with pytest.raises(AssertionError, match="indexing by a mask"), NoReads():
        torch.ones(3)[torch.tensor([True, False, True])]
