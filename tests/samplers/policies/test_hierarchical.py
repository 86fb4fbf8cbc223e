"""dInfer's hierarchical rule, run by run."""

import itertools

import pytest
import torch
from fakes import SpikeModel
from row_by_row import VOCAB, assert_same_path, every_setting

from dlm_kernels import InvalidArgumentError
from dlm_samplers import Hierarchical, LLaDASampler


def runs(columns):
    """Groups of adjacent columns."""
    for _, group in itertools.groupby(enumerate(columns), key=lambda pair: pair[1] - pair[0]):
        yield [column for _, column in group]


def hierarchy(tau, low):
    def rule(step):
        c = step.confidence
        leaders = [i for run in runs(step.masked) for i in step.best(run) if c[i] > low]
        return {*leaders, *(i for i in step.masked if c[i] > tau), *step.best()}

    return rule


@every_setting
@pytest.mark.parametrize(("tau", "low"), [(0.9, 0.2), (0.5, 0.1), (1.0, 1.0), (0.3, 0.6)])
def test_the_path_is_dinfers(tau, low, block_length, temperature, dream):
    for seed in range(5):
        assert_same_path(
            Hierarchical(tau, low),
            lambda: hierarchy(tau, low),
            model=SpikeModel(seed, vocab=VOCAB),
            block_length=block_length,
            temperature=temperature,
            seed=seed,
            dream=dream,
        )


def test_of_equals_in_a_run_the_leftmost_commits():
    model = SpikeModel(0, vocab=VOCAB)
    model.table[:] = 0.0  # every confidence is the same
    out = LLaDASampler(model, policy=Hierarchical(1.0, 0.01)).generate(
        torch.zeros(1, 1, dtype=torch.long), max_new_tokens=5, return_history=True
    )
    masks = [(canvas[0, 1:] == model.mask).int().tolist() for canvas in out.history[1:3]]
    assert masks == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize(("low", "forwards"), [(0.5, 2), (0.49, 1)])
def test_a_run_commits_above_tau_low_not_at_it(low, forwards):
    model = SpikeModel(0, vocab=VOCAB)
    model.table[:] = -200.0
    model.table[:, :2] = 0.0  # every confidence is one half
    editable = torch.tensor([[False, True, False, True]])
    out = LLaDASampler(model, policy=Hierarchical(0.9, low)).generate(
        torch.zeros(1, 4, dtype=torch.long), editable=editable, max_new_tokens=0
    )
    assert out.nfe.tolist() == [forwards]


def test_thresholds_may_differ_from_request_to_request():
    model = SpikeModel(1, vocab=VOCAB)
    prompts = torch.zeros(3, 2, dtype=torch.long)
    settings = {"max_new_tokens": 16, "block_length": 16}
    taus, lows = (0.3, 0.95, 1.0), (0.3, 0.1, 1.0)
    together = LLaDASampler(model, policy=Hierarchical(taus, lows)).generate(prompts, **settings)
    for row in range(3):
        alone = LLaDASampler(model, policy=Hierarchical(taus[row], lows[row])).generate(prompts[:1], **settings)
        assert torch.equal(alone.sequences[0], together.sequences[row])
    assert together.nfe[2] == 16


@pytest.mark.parametrize(("arguments", "message"), [({"tau": 0.0}, "tau must"), ({"tau_low": 1.1}, "tau_low must")])
def test_bad_parameters_are_named(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Hierarchical(**arguments)
