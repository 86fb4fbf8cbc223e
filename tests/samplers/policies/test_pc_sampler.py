"""PC-Sampler's order against its formula, and the frequency table."""

import math

import pytest
import torch
from fakes import SpikeModel
from plain_rows import VOCABULARY, PlainRow, agree, best, cases

from dlm_kernels import InvalidArgumentError
from dlm_samplers import FixedQuota, LLaDASampler, PCSampler, background_frequencies

FREQUENCIES = background_frequencies([torch.arange(VOCABULARY).repeat_interleave(torch.arange(VOCABULARY))], VOCABULARY)


def calibrated(model, prompt, new, block, lam, alpha, per_step):
    row = PlainRow(model, prompt, new, block)
    while row.masked():
        begin, end = row.next_block()
        while row.masked(begin, end):
            row.forward()
            score = {}
            for i in row.masked(begin, end):
                surprise = -row.confidence[i] * math.log(float(FREQUENCIES[row.proposal[i]]) + 1e-9)
                score[i] = math.exp(-lam * (i - begin)) * min(surprise, alpha)
            row.commit(best(score, score, per_step))
    return row


@pytest.mark.parametrize(
    ("lam", "alpha", "per_step", "block"), [(0.25, 10.0, 1, None), (0.0, 1.0, 2, 6), (1.0, 2.0, 3, 8)]
)
def test_the_order_is_the_formula(lam, alpha, per_step, block):
    for model, prompts, budgets in cases(20, seed=per_step):
        policy = PCSampler(FREQUENCIES, lam, alpha, FixedQuota(tokens_per_step=per_step))
        out = LLaDASampler(model, policy=policy).generate(prompts, max_new_tokens=budgets, block_length=block)
        rows = [
            calibrated(model, p.tolist(), b, block, lam, alpha, per_step) for p, b in zip(prompts, budgets, strict=True)
        ]
        agree(out, prompts, budgets, rows)


def test_positions_far_to_the_right_keep_their_order():
    """exp(-lam * i) is 0 in fp32 from i = 104 / lam on."""
    model = SpikeModel(1)
    policy = PCSampler(FREQUENCIES, lam=50.0)
    out = LLaDASampler(model, policy=policy).generate([[1]], max_new_tokens=40, block_length=None, return_history=True)
    order = [(a != b)[0].nonzero()[:, 0].tolist() for a, b in zip(out.history, out.history[1:], strict=False)]
    assert order == [[i] for i in range(1, 41)]


def test_on_a_schedule_it_spends_the_steps_given():
    out = LLaDASampler(SpikeModel(1), policy=PCSampler(FREQUENCIES)).generate(
        [[1]], max_new_tokens=16, steps=4, block_length=16
    )
    assert out.nfe.tolist() == [4]


def test_bad_parameters_are_refused():
    for build, message in (
        (lambda: PCSampler([0.5, 0.5]), r"background must be a float tensor \[V\]"),
        (lambda: PCSampler(torch.tensor([1.5])), r"background must hold frequencies in \[0, 1\]"),
        (lambda: PCSampler(FREQUENCIES, lam=-1.0), "lam must be >= 0"),
        (lambda: PCSampler(FREQUENCIES, alpha=0.0), "alpha must be above 0"),
        (
            lambda: PCSampler(FREQUENCIES, inner=FixedQuota("margin")),
            "inner must be a FixedQuota in order of confidence",
        ),
        (
            lambda: LLaDASampler(SpikeModel(1), policy=PCSampler(FREQUENCIES[:9])),
            "a frequency for each of 23 tokens, got 9",
        ),
        (lambda: background_frequencies([[5]], 3), r"token ids in \[0, 3\)"),
        (lambda: background_frequencies([], 3), "at least one token"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            build()


def test_the_table_stays_out_of_the_name():
    assert str(PCSampler(FREQUENCIES, lam=0.5)) == "PCSampler(lam=0.5)"
    assert "tensor" not in repr(PCSampler(FREQUENCIES))
