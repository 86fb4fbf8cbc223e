"""Samplers on distributions that are known: the oracles against brute force, validity and errors against closed forms."""

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare

from dlm_benches.samplers.law import linear_shares
from dlm_benches.samplers.oracle import (
    MarkovOracle,
    PermutationOracle,
    is_permutation,
    noisy_cycle,
    pair_error,
    transition_errors,
    valid_by_quota,
    valid_by_shares,
)
from dlm_samplers import AncestralUnmask, EntropyBound, EventDriven, FixedQuota, LLaDASampler, ModelSpec, Threshold

Z = 5.0
"""Standard deviations: a two-sided false alarm rate of 6e-7 a comparison. Seeds are fixed."""


def draw(oracle, policy, rows, length, **settings):
    sampler = LLaDASampler(oracle, policy=policy, spec=ModelSpec(mask_id=oracle.mask))
    settings = {"block_length": None, "temperature": 1.0, "seed": 1, **settings}
    return sampler.generate(torch.zeros(rows, 0, dtype=torch.int64), max_new_tokens=length, **settings)


def lopsided_chain(states):
    return (torch.rand(states, states, generator=torch.Generator().manual_seed(2)).double() + 0.1).softmax(-1)


def test_markov_posteriors_by_brute_force():
    states, length = 3, 4
    oracle = MarkovOracle(lopsided_chain(states))
    torch.testing.assert_close(oracle.stationary @ oracle.transition, oracle.stationary)
    for canvas in itertools.product(range(states + 1), repeat=length):
        joint = torch.zeros(length, states, dtype=torch.float64)
        for chain in itertools.product(range(states), repeat=length):
            if all(given in (x, states) for given, x in zip(canvas, chain, strict=True)):
                p = oracle.stationary[chain[0]]
                for a, b in itertools.pairwise(chain):
                    p = p * oracle.transition[a, b]
                joint[torch.arange(length), torch.tensor(chain)] += p
        expected = joint / joint.sum(-1, keepdim=True)
        got = oracle(torch.tensor([canvas]))[0]
        torch.testing.assert_close(got.exp()[:, :-1].double(), expected, rtol=1e-6, atol=1e-7)
        assert (got[:, -1] == -torch.inf).all()


def test_permutation_posteriors():
    oracle = PermutationOracle(4)
    got = oracle(torch.tensor([[4, 2, 4, 0], [4, 4, 1, 1]])).softmax(-1)
    half, third = 1 / 2, 1 / 3
    torch.testing.assert_close(got[0, 0], torch.tensor([0, half, 0, half, 0]))
    torch.testing.assert_close(got[1, 1], torch.tensor([third, 0, third, third, 0]))


@pytest.mark.parametrize(("k", "published"), [(1, 1.0), (2, 0.2734), (3, None), (4, 0.0385), (8, 0.0024)])
def test_valid_permutations_by_tokens_a_step(k, published):
    """The curse of parallel decoding, to the number: a perfect model, and k of its tokens at once."""
    n, rows = 8, 2500
    p = valid_by_quota(n, k)
    assert published is None or abs(p - published) < 5e-5
    out = draw(PermutationOracle(n), FixedQuota("random", tokens_per_step=k), rows, n)
    assert abs(float(is_permutation(out.sequences).double().mean()) - p) <= Z * math.sqrt(p * (1 - p) / rows)
    assert (out.nfe == -(-n // k)).all()


@pytest.mark.parametrize("steps", [1, 3, 8, 40])
@pytest.mark.parametrize(("policy", "eps"), [(EventDriven, 0.0), (AncestralUnmask, 1e-3)])
def test_valid_permutations_of_ancestral_steps(policy, eps, steps):
    n, rows = 8, 2500
    p = valid_by_shares(n, linear_shares(steps, eps))
    if policy is EventDriven:
        out = draw(PermutationOracle(n), policy(steps), rows, n)
    else:
        out = draw(PermutationOracle(n), policy(), rows, n, steps=steps)
    assert abs(float(is_permutation(out.sequences).double().mean()) - p) <= Z * math.sqrt(p * (1 - p) / rows)


def test_validity_by_shares_has_the_right_limits():
    assert valid_by_shares(8, [1.0]) == pytest.approx(valid_by_quota(8, 8))
    assert valid_by_shares(8, linear_shares(10**4)) == pytest.approx(1, abs=1e-2)


def test_a_threshold_above_a_half_makes_no_invalid_permutation():
    """Of r items left each has probability 1 / r, so that only the last one is above it."""
    out = draw(PermutationOracle(8), Threshold(0.6), 500, 8)
    assert is_permutation(out.sequences).all()
    assert (out.nfe == 8).all()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_error_of_a_pair_is_the_chance_of_one_step(steps):
    """Two positions flip in the same of T steps with probability 1 / T; then they are independent."""
    oracle = MarkovOracle(noisy_cycle(4))
    apart = float((oracle.pairs - oracle.stationary[:, None] * oracle.stationary).abs().sum() / 2)
    error = pair_error(draw(oracle, EventDriven(steps), 6000, 2).sequences, oracle.pairs)
    assert abs(error.total_variation - apart / steps) <= Z * error.standard_error


def p_of_chains(oracle, policy, rows=3000, length=3):
    out = draw(oracle, policy, rows, length)
    v = oracle.vocabulary
    law = oracle.stationary[:, None, None] * oracle.transition[:, :, None] * oracle.transition[None]
    code = (out.sequences * v ** torch.arange(length - 1, -1, -1)).sum(-1)
    counts = torch.bincount(code, minlength=v**length).double()
    return chisquare(counts.numpy(), (law.flatten() / law.sum() * rows).numpy()).pvalue


ONE_BY_ONE = [
    FixedQuota("random", tokens_per_step=1),
    FixedQuota("left_to_right", tokens_per_step=1),
    FixedQuota("entropy", tokens_per_step=1),
    FixedQuota("margin", tokens_per_step=1),
    EntropyBound(0.0),
    EventDriven(),
]


@pytest.mark.parametrize("policy", ONE_BY_ONE, ids=repr)
def test_one_by_one_in_an_order_blind_to_the_draw_is_exact(policy):
    """Chi-square over all chains; false alarm rate 1e-6."""
    assert p_of_chains(MarkovOracle(lopsided_chain(3)), policy) > 1e-6


def test_the_order_by_confidence_of_the_drawn_token_is_not_exact():
    """It prefers likely tokens, even one by one (arXiv:2510.04525): what the test above can see."""
    oracle = MarkovOracle(noisy_cycle(3))
    assert p_of_chains(oracle, FixedQuota("random", tokens_per_step=1)) > 1e-6
    assert p_of_chains(oracle, FixedQuota("confidence", tokens_per_step=1)) < 1e-6


def test_table_of_errors():
    table = transition_errors(rows=200, length=8, states=4)
    one_step = [row for row in table if row["nfe"] == 1]
    oracle = MarkovOracle(noisy_cycle(4))
    apart = float((oracle.pairs - oracle.stationary[:, None] * oracle.stationary).abs().sum() / 2)
    assert {row["family"] for row in one_step} >= {"random order", "event-driven", "ancestral", "confidence"}
    for row in one_step:
        assert abs(row["total_variation"] - apart) <= Z * row["standard_error"]
    for family in ("random order", "event-driven"):
        errors = [row["total_variation"] for row in table if row["family"] == family]
        assert errors[0] > 2 * errors[2] > 2 * errors[3]
