"""CreditDecoding against the rule on the whole vocabulary."""

import numpy as np
import pytest
import torch
from fakes import TableModel
from row_by_row import VOCAB, Drifting, assert_same_path, every_setting

from dlm_kernels import InvalidArgumentError
from dlm_samplers import Credit, DreamSampler, LLaDASampler, Threshold


class Dense:
    """dInfer's credit matrix, block x V, without the mask token; at most k entries of a position live."""

    def __init__(self, policy, temperature=0.0):
        self.p, self.temperature = policy, temperature
        self.used, self.evicted, self.changed = 0, 0, 0

    def __call__(self, step):
        p = self.p
        if step.new_block:
            self.credit = np.zeros(step.probs.shape)
        self.credit *= p.beta
        token, confidence = {}, {}
        for i in step.masked:
            top = int(step.probs[i].argmax())
            held = np.flatnonzero(self.credit[i])
            if top not in held and len(held) == p.k:
                self.credit[i, held[self.credit[i, held].argmin()]] = 0
                self.evicted += 1
            self.credit[i, top] += step.probs[i, top] ** p.gamma
            raised = step.probs[i] * (1 + self.credit[i]) ** p.alpha
            raised /= raised.sum()
            token[i] = step.token[i] if self.temperature else int(raised.argmax())
            self.changed += token[i] != step.token[i]
            confidence[i] = float(raised[token[i]])
        chosen = [i for i in step.masked if confidence[i] >= p.tau]
        self.used += len(chosen)
        return {i: token[i] for i in chosen or step.best(score=confidence)}


@every_setting
@pytest.mark.parametrize(
    "policy",
    [
        Credit(0.6, k=VOCAB),
        Credit(0.6, k=2),
        Credit(0.7, k=1),
        Credit(0.8, alpha=4.0, gamma=0.5, beta=0.95, k=VOCAB),
        Credit(0.5, alpha=0.0, k=3),
    ],
    ids=str,
)
def test_the_path_is_that_of_dense_credit(policy, block_length, temperature, dream):
    rules = []

    def rule():
        rules.append(Dense(policy, temperature))
        return rules[-1]

    for seed in range(3):
        assert_same_path(
            policy,
            rule,
            model=Drifting(seed, drift=0.6),
            block_length=block_length,
            temperature=temperature,
            seed=seed,
            dream=dream,
        )
    assert sum(rule.used for rule in rules)
    if block_length != 1:
        assert (sum(rule.evicted for rule in rules) > 0) == (policy.k < VOCAB)
        if policy.alpha > 1 and not temperature:
            assert sum(rule.changed for rule in rules), "credit never overruled the model"


def test_without_strength_it_is_the_threshold():
    model = Drifting(4)
    prompts = torch.zeros(3, 4, dtype=torch.long)
    settings = {"max_new_tokens": 20, "block_length": 10}
    credit = LLaDASampler(model, policy=Credit(0.6, alpha=0.0)).generate(prompts, **settings)
    plain = LLaDASampler(model, policy=Threshold(0.6)).generate(prompts, **settings)
    assert torch.equal(credit.sequences, plain.sequences)
    assert torch.equal(credit.nfe, plain.nfe)


def test_it_needs_fewer_forwards_where_the_model_repeats_itself():
    model = Drifting(4, drift=0.05)
    prompts = torch.zeros(8, 1, dtype=torch.long)
    settings = {"max_new_tokens": 32, "block_length": 32}
    credit = LLaDASampler(model, policy=Credit(0.9, alpha=2.0)).generate(prompts, **settings)
    plain = LLaDASampler(model, policy=Threshold(0.9)).generate(prompts, **settings)
    assert credit.nfe.sum() < plain.nfe.sum()


def test_credit_goes_with_the_mask():
    committed = None

    def look(_, step, state):
        nonlocal committed
        credit = state.position_memory["credit.credit"]
        if committed is not None:
            assert (credit[committed] == 0).all()
            assert (credit[state.masked()] > 0).any()
        committed = ~state.masked()

    LLaDASampler(Drifting(2), policy=Credit(0.9)).generate(
        torch.zeros(2, 1, dtype=torch.long),
        max_new_tokens=9,
        block_length=9,
        callback_on_step_end=lambda *a: look(*a) if a[1] < 5 else None,
    )


def test_filters_of_the_draw_do_not_enter_the_confidence():
    """Dream measures confidence after top-p; credit is about the model's own distribution, which k = V makes checkable."""
    policy = Credit(0.7, k=VOCAB)
    model = Drifting(5, drift=0.6)
    prompts = torch.zeros(4, 3, dtype=torch.long)
    settings = {"max_new_tokens": 12, "block_length": 12, "temperature": 0.0}
    narrow = DreamSampler(model, policy=policy).generate(prompts, top_p=0.5, **settings)
    wide = DreamSampler(model, policy=policy).generate(prompts, **settings)
    assert torch.equal(narrow.sequences, wide.sequences)
    assert torch.equal(narrow.nfe, wide.nfe)


def test_a_second_pass_is_made_only_where_tokens_are_drawn(monkeypatch):
    calls = []
    real = LLaDASampler.score

    def spy(self, evaluation, state, scoring):
        calls.append(scoring["temperature"])
        return real(self, evaluation, state, scoring)

    monkeypatch.setattr(LLaDASampler, "score", spy)
    for policy, temperature, expected in [
        (Credit(), 0.0, [0.0]),
        (Credit(), 0.5, [0.5, 0.0]),
        (Threshold(), 0.5, [0.5]),
    ]:
        calls.clear()
        LLaDASampler(TableModel(1), policy=policy).generate(
            torch.zeros(1, 1, dtype=torch.long), max_new_tokens=1, temperature=temperature
        )
        assert calls == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": 1.5}, "tau must be in"),
        ({"alpha": -1.0}, "alpha must be >= 0"),
        ({"gamma": float("nan")}, "gamma must be >= 0"),
        ({"beta": 1.1}, "beta must be in"),
        ({"k": 0}, "k must be at least 1"),
    ],
)
def test_bad_parameters_are_named(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Credit(**arguments)


def test_defaults_are_dinfers():
    assert Credit() == Credit(alpha=0.7, gamma=0.2, beta=0.8)
