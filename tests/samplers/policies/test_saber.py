"""Saber, with and without its backtracking, against a plain loop over one row."""

import math

import pytest
from fakes import SpikeModel
from plain_rows import PlainRow, agree, best, cases

from dlm_kernels import InvalidArgumentError
from dlm_samplers import ConfidenceDrop, FixedQuota, LLaDASampler, Saber, Threshold


def saber(model, prompt, new, block, n, mu, drops):
    """The row, and how often a step took something back."""
    row, at_commit, before, backtracks = PlainRow(model, prompt, new, block), {}, {}, 0
    while row.masked():
        begin, end = row.next_block()
        while row.masked(begin, end):
            log_p = row.forward()
            masked = row.masked(begin, end)
            standing = [i for i in range(row.start, row.end) if row.canvas[i] != row.mask]
            mean = sum(at_commit[i] for i in standing) / len(standing) if standing else 1.0
            chosen = [i for i in masked if row.confidence[i] > mean]
            if len(chosen) < n:
                chosen = best(masked, row.confidence, n)
            at_commit |= {i: row.confidence[i] for i in chosen}
            now = {i: math.exp(log_p[i][row.canvas[i]]) for i in standing if i >= begin}
            drop = {i: before[i] - p for i, p in now.items()}
            before |= now | {i: row.confidence[i] for i in chosen}
            row.commit(chosen)
            if drops and row.masked(begin, end):
                count = min(max(n // 2, math.ceil(len(chosen) / mu)), len(chosen) - 1)
                taken = best(drop, drop, count)
                backtracks += bool(taken)
                for i in taken:
                    row.canvas[i] = row.mask
    return row, backtracks


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize(("n", "mu", "block"), [(2, 8, None), (1, 2, 6), (3, 1, 8)])
def test_saber_is_the_plain_loop(n, mu, block, drops):
    backtracks = 0
    for model, prompts, budgets in cases(15, seed=n):
        remask = ConfidenceDrop(n, mu) if drops else None
        out = LLaDASampler(model, policy=Saber(n), remask=remask).generate(
            prompts, max_new_tokens=budgets, block_length=block
        )
        rows = [saber(model, p.tolist(), b, block, n, mu, drops) for p, b in zip(prompts, budgets, strict=True)]
        agree(out, prompts, budgets, [row for row, _ in rows])
        backtracks += sum(times for _, times in rows)
    assert bool(backtracks) == drops, "the cases take something back"


class Disowning(SpikeModel):
    """Certain of every mask, and of any token but the one that stands where one does."""

    def __call__(self, tokens, **kwargs):
        output = super().__call__(tokens, **kwargs)
        output.logits.scatter_(-1, tokens[..., None], -20.0)
        return output


@pytest.mark.parametrize("policy", [Saber(3), Threshold(0.05), FixedQuota(tokens_per_step=5)], ids=str)
def test_backtracking_ends_though_the_model_disowns_every_token(policy):
    for mu in (1, 8):
        for seed in range(20):
            model = Disowning(seed, height=12.0)
            out = LLaDASampler(model, policy=policy, remask=ConfidenceDrop(n=9, mu=mu)).generate(
                [[1, 2], [3]], max_new_tokens=[24, 17], block_length=12
            )
            assert out.finished.all()
            assert (out.nfe.tolist()[0], out.nfe.tolist()[1]) <= (24, 17)


def test_a_schedule_has_no_steps_for_what_is_taken_back():
    with pytest.raises(InvalidArgumentError, match=r"ConfidenceDrop takes back.*FixedQuota.*tokens_per_step"):
        LLaDASampler(SpikeModel(1), policy=FixedQuota(), remask=ConfidenceDrop())


def test_bad_parameters_are_refused():
    for build, message in (
        (lambda: Saber(0), "n must be an int >= 1, got 0"),
        (lambda: Saber(True), "n must be"),
        (lambda: ConfidenceDrop(n=-1), "n must be an int >= 0"),
        (lambda: ConfidenceDrop(mu=0), "mu must be an int >= 1"),
        (lambda: ConfidenceDrop(mu=2.5), "mu must be"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            build()
