"""KLASS's decision rule, written a second time."""

import math

import numpy as np
import pytest
import torch
from fakes import TableModel
from row_by_row import VOCAB, Drifting, assert_same_path, every_setting

from dlm_kernels import InvalidArgumentError
from dlm_samplers import KLStable, LLaDASampler


class Klass:
    """Keeps every distribution whole."""

    def __init__(self, tau, epsilon, history, u, k):
        self.tau, self.epsilon, self.history, self.u, self.k = tau, epsilon, history, u, k
        self.used = False

    def __call__(self, step):
        now = np.exp(step.logits - np.logaddexp.reduce(step.logits, axis=-1, keepdims=True))
        if step.new_block:
            self.before, self.small = None, {}
        for i in step.masked:
            kl = math.inf if self.before is None else self.divergence(self.before[i], now[i])
            self.small.setdefault(i, []).append(kl < self.epsilon)
        self.before = now
        settled = [i for i in step.masked if len(self.small[i]) > self.history and all(self.small[i][-self.history :])]
        ready = [i for i in settled if step.confidence[i] > self.tau]
        self.used |= bool(ready)
        return ready or step.best(count=self.u)

    def divergence(self, p, q):
        order = np.argsort(-p, kind="stable")
        kept, rest = order[: self.k], order[self.k :]
        kl = float((p[kept] * np.log(p[kept] / q[kept])).sum())
        return kl + (p[rest].sum() * math.log(p[rest].sum() / q[rest].sum()) if len(rest) else 0.0)


@every_setting
@pytest.mark.parametrize(
    ("epsilon", "history", "u", "k"), [(0.05, 2, 1, 8), (0.05, 1, 2, 1), (9.0, 1, 1, 2), (0.05, 3, 1, VOCAB)]
)
def test_the_path_is_klass(epsilon, history, u, k, block_length, temperature, dream):
    rules = []

    def rule():
        rules.append(Klass(0.3, epsilon, history, u, k))
        return rules[-1]

    for seed in range(3):
        assert_same_path(
            KLStable(0.3, epsilon, history=history, u=u, k=k),
            rule,
            model=Drifting(seed),
            block_length=block_length,
            temperature=temperature,
            seed=seed,
            dream=dream,
        )
    assert block_length == 1 or any(rule.used for rule in rules), "the settled positions never mattered"


def test_without_settled_positions_it_is_the_u_surest():
    """On a model whose every distribution jumps, epsilon tiny."""
    model = TableModel(3)
    out = LLaDASampler(model, policy=KLStable(0.1, 1e-9, u=3)).generate(
        torch.zeros(2, 1, dtype=torch.long), max_new_tokens=12, block_length=12
    )
    assert out.nfe.tolist() == [4, 4]


def test_thresholds_may_differ_from_request_to_request():
    model = Drifting(1)
    prompts = torch.zeros(3, 2, dtype=torch.long)
    settings = {"max_new_tokens": 16, "block_length": 16}
    taus, epsilons = (0.2, 0.6, 0.2), (0.5, 0.5, 1e-6)
    together = LLaDASampler(model, policy=KLStable(taus, epsilons)).generate(prompts, **settings)
    for row in range(3):
        alone = LLaDASampler(model, policy=KLStable(taus[row], epsilons[row])).generate(prompts[:1], **settings)
        assert torch.equal(alone.sequences[0], together.sequences[row])
        assert alone.nfe[0] == together.nfe[row]
    assert together.nfe[0] < together.nfe[2] == 16


def test_a_step_reads_the_rows_of_the_block_alone(monkeypatch):
    from dlm_samplers.policies import kl_stable

    read = []

    def spy(logits, k, **kwargs):
        read.append(tuple(logits.shape))
        return real(logits, k, **kwargs)

    real = kl_stable.topk_kl
    monkeypatch.setattr(kl_stable, "topk_kl", spy)
    LLaDASampler(Drifting(0), policy=KLStable()).generate(
        torch.zeros(2, 50, dtype=torch.long), max_new_tokens=12, block_length=4
    )
    assert set(read) == {(2, 4, VOCAB)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau_c": 0.0}, "tau_c must be in"),
        ({"epsilon": 0.0}, "epsilon must be above 0 nats"),
        ({"epsilon": (0.1, float("nan"))}, "epsilon"),
        ({"history": 0}, "history must be at least 1"),
        ({"u": 0}, "u must be at least 1"),
        ({"k": 0}, "k must be at least 1"),
    ],
)
def test_bad_parameters_are_named(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        KLStable(**arguments)


def test_defaults_are_those_of_the_authors_function():
    assert KLStable() == KLStable(tau_c=0.9, epsilon=0.01, history=2, u=1)
