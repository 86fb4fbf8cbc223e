"""The spacing filter, greedily and one position at a time."""

import numpy as np
import pytest
import torch
from fakes import SpikeModel
from row_by_row import VOCAB, assert_same_path, every_setting

from dlm_kernels import InvalidArgumentError
from dlm_samplers import (
    AncestralUnmask,
    Dilated,
    EntropyBound,
    Factor,
    FixedQuota,
    Guarantee,
    LLaDASampler,
    Margin,
    Spaced,
    Threshold,
)


def by_threshold(step, tau=0.2):
    c = step.confidence
    return [i for i in step.best(count=len(step.masked)) if c[i] >= tau] or step.best()


def by_margin(step, tau=0.1):
    top = np.sort(step.probs, axis=-1)
    margin = (top[:, -1] - top[:, -2]).tolist()
    return [i for i in step.best(score=margin, count=len(step.masked)) if margin[i] >= tau] or step.best(score=margin)


def by_entropy(step, gamma=2.0):
    with np.errstate(divide="ignore", invalid="ignore"):
        certainty = np.nansum(step.probs * np.log(step.probs), axis=-1)
    order = step.best(score=certainty, count=len(step.masked))
    count = 1
    while count < len(order) and -sum(certainty[i] for i in order[:count]) <= gamma:
        count += 1
    return order[:count]


INNER = [(Threshold(0.2), by_threshold), (Margin(0.1), by_margin), (EntropyBound(2.0), by_entropy)]


class Filtered:
    """The authors' apply_spacing_filter and its adaptive gap."""

    def __init__(self, inner, distance, relax):
        self.inner, self.distance, self.relax = inner, distance, relax
        self.deferred = 0

    def __call__(self, step):
        if step.new_block:
            self.block = len(step.masked)
        gap = max(2, len(step.masked) * self.distance // self.block) if self.relax else self.distance
        kept = []
        for i in self.inner(step):
            if all(abs(i - j) >= gap for j in kept):
                kept.append(i)
            else:
                self.deferred += 1
        return kept


@every_setting
@pytest.mark.parametrize(("distance", "relax"), [(2, False), (5, False), (8, True), (3, True), (64, False), (64, True)])
@pytest.mark.parametrize(("inner", "rule"), INNER, ids=["threshold", "margin", "entropy"])
def test_the_path_is_the_greedy_filter(inner, rule, distance, relax, block_length, temperature, dream):
    filters = []

    def make():
        filters.append(Filtered(rule, distance, relax))
        return filters[-1]

    for seed in range(3):
        assert_same_path(
            Spaced(inner, distance, relax),
            make,
            model=SpikeModel(seed, vocab=VOCAB),
            block_length=block_length,
            temperature=temperature,
            seed=seed,
            dream=dream,
            longest=30,
        )
    assert block_length == 1 or sum(f.deferred for f in filters)


@pytest.mark.parametrize("relax", [False, True])
@pytest.mark.parametrize("distance", [2, 3, 8, 17, 100])
@pytest.mark.parametrize("span", [1, 2, 7, 32, 61])
def test_the_loop_is_long_enough_for_every_step(span, distance, relax):
    """Everything selected, preferred from left to right: the densest that a step can commit."""
    spaced = Spaced(Threshold(), distance, relax)
    for masks in range(1, span + 1):
        gap = int(spaced._distance(torch.tensor([masks]), torch.tensor([span])))
        assert spaced._most(span) >= min(masks, -(-span // gap))


def test_a_wide_distance_commits_one_at_a_time_and_the_plan_of_dus_is_left_to_right():
    model = SpikeModel(3, vocab=VOCAB)
    prompt = torch.zeros(1, 2, dtype=torch.long)
    settings = {"max_new_tokens": 8, "block_length": 8, "return_history": True}
    one = LLaDASampler(model, policy=Spaced(Threshold(0.01), 8, relax=False)).generate(prompt, **settings)
    assert torch.equal(
        one.sequences,
        LLaDASampler(model, policy=FixedQuota(tokens_per_step=1)).generate(prompt, **settings).sequences,
    )
    plan = LLaDASampler(model, policy=Spaced(Dilated(), 8, relax=False)).generate(prompt, **settings)
    order = [int((a != b).int().argmax()) - 2 for a, b in zip(plan.history, plan.history[1:], strict=False)]
    assert order == [0, 4, 2, 6, 1, 3, 5, 7]


def test_a_bounded_policy_stays_bounded():
    assert Spaced(Factor(1.0)).guarantee is Guarantee.BOUNDED
    assert Spaced(EntropyBound()).guarantee is Guarantee.BOUNDED
    assert Spaced(Threshold()).guarantee is Guarantee.APPROXIMATE
    assert Spaced(FixedQuota(tokens_per_step=2)).guarantee is Guarantee.APPROXIMATE
    assert not Spaced(EntropyBound()).keyed_by_step
    assert Spaced(EntropyBound(statistics="sampling")).statistics == "sampling"
    assert Spaced(Threshold()).keyed_by_step


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Spaced(FixedQuota()), r"FixedQuota\(\) would run out of its steps.*tokens_per_step"),
        (lambda: Spaced(AncestralUnmask()), "run out of its steps"),
        (lambda: Spaced(Threshold(), 1), "distance must be at least 2 tokens, got 1"),
        (lambda: Spaced(0.9), "inner must be a Policy instance, got 0.9"),
    ],
)
def test_bad_parameters_are_named(build, message):
    with pytest.raises(InvalidArgumentError, match=message):
        build()
