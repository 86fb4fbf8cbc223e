"""SlowFast's two phases, step by step."""

import numpy as np
import pytest
import torch
from row_by_row import Drifting, assert_same_path, every_setting

from dlm_kernels import InvalidArgumentError
from dlm_samplers import LLaDASampler, SlowFast


class Phases:
    def __init__(self, policy):
        self.p, self.fast, self.slow = policy, 0, 0

    def __call__(self, step):
        p, c = self.p, step.confidence
        if step.new_block:
            self.end, self.horizons = None, []
        if self.end is not None:
            region = [i for i in step.masked if i < self.end]
            if region:
                self.fast += 1
                return {i for i in region if c[i] >= p.tau_high} | set(step.best(region))
            self.end, self.horizons = None, []
        self.slow += 1
        self.horizons.append(max([i for i in step.masked if c[i] >= p.tau_min] or step.masked[:1]) + 1)
        recent = self.horizons[-p.window :]
        if len(recent) == p.window and np.var(recent) < p.variance:
            self.end = self.horizons[-1]
        elif len(self.horizons) == p.most_slow:
            self.end = int(np.mean(recent))
        return step.best(count=p.u)


@every_setting
@pytest.mark.parametrize(
    "policy",
    [
        SlowFast(),
        SlowFast(tau_min=0.6, tau_high=0.5, most_slow=3),
        SlowFast(tau_min=0.5, tau_high=0.3, window=3, variance=20.0, u=2),
        SlowFast(tau_min=0.95, tau_high=0.2, most_slow=1, window=1),
    ],
    ids=str,
)
def test_the_path_is_slow_and_fast(policy, block_length, temperature, dream):
    phases = []

    def rule():
        phases.append(Phases(policy))
        return phases[-1]

    for seed in range(5):
        assert_same_path(
            policy,
            rule,
            model=Drifting(seed, drift=0.4),
            block_length=block_length,
            temperature=temperature,
            seed=seed,
            dream=dream,
            longest=40,
        )
    assert sum(p.slow for p in phases)
    if block_length != 1:
        assert sum(p.fast for p in phases)


def test_a_still_horizon_needs_fewer_slow_steps():
    model = Drifting(0, drift=0.0)
    prompts = torch.zeros(4, 1, dtype=torch.long)
    settings = {"max_new_tokens": 32, "block_length": 32}
    early = LLaDASampler(model, policy=SlowFast(tau_high=0.3)).generate(prompts, **settings)
    never = LLaDASampler(model, policy=SlowFast(tau_high=0.3, variance=1e-9, window=8)).generate(prompts, **settings)
    assert early.nfe.sum() < never.nfe.sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau_min": 0.0}, "tau_min must be in"),
        ({"tau_high": 2.0}, "tau_high must be in"),
        ({"window": 9}, r"window must be in \[1, most_slow = 8\], got 9"),
        ({"window": 0}, "window must be in"),
        ({"variance": 0.0}, "variance must be above 0"),
        ({"u": 0}, "u must be at least 1"),
    ],
)
def test_bad_parameters_are_named(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        SlowFast(**arguments)


def test_defaults_are_the_papers():
    assert SlowFast() == SlowFast(tau_min=0.1, tau_high=0.85, most_slow=8, window=2, variance=1.0)
