"""P2 self-planning against a plain loop, its limits, and its end."""

import pytest
from fakes import SpikeModel, TableModel
from plain_rows import PlainRow, agree, best, cases

from dlm_kernels import InvalidArgumentError
from dlm_samplers import ConfidenceDrop, FixedQuota, LLaDASampler, SelfPlanning


def planned(model, prompt, new, block, steps, eta):
    """The row, and how often a written token was masked again."""
    row, dropped = PlainRow(model, prompt, new, block), 0
    while row.masked():
        begin, end = row.next_block()
        positions = range(begin, end)
        for step in range(1, steps + 1):
            if not row.masked(begin, end):
                break
            log_p = row.forward()
            score = {
                i: log_p[i][row.proposal[i]] if row.canvas[i] == row.mask else eta * log_p[i][row.canvas[i]]
                for i in positions
            }
            kept = best(positions, score, len(positions) - len(positions) * (steps - step) // steps)
            for i in positions:
                if i in kept and row.canvas[i] == row.mask:
                    row.canvas[i] = row.proposal[i]
                elif i not in kept and row.canvas[i] != row.mask:
                    row.canvas[i] = row.mask
                    dropped += 1
    return row, dropped


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("block", "steps"), [(8, 8), (8, 3), (6, 9)])
def test_self_planning_is_the_plain_loop(eta, block, steps):
    dropped = 0
    for model, prompts, _ in cases(8, seed=steps):
        budgets = [block * n for n in (1, 2, 1, 2)]
        out = LLaDASampler(model, remask=SelfPlanning(eta)).generate(
            prompts, max_new_tokens=budgets, block_length=block, steps=2 * steps
        )
        rows = [planned(model, p.tolist(), b, block, steps, eta) for p, b in zip(prompts, budgets, strict=True)]
        agree(out, prompts, budgets, [row for row, _ in rows])
        dropped += sum(number for _, number in rows)
    assert bool(dropped) == (eta > 0), "eta = 0 never takes a token back"


def test_a_model_that_flips_on_every_step_ends_on_schedule():
    for seed in range(20):
        model = TableModel(seed, low=30.0, high=60.0)
        out = LLaDASampler(model, remask=SelfPlanning(5.0)).generate(
            [[1, 2], [3]], max_new_tokens=[16, 9], block_length=8, steps=24
        )
        assert (out.sequences[0] != model.mask).all()
        assert (out.sequences[1, :10] != model.mask).all()
        assert (out.nfe <= 24).all()


def test_it_goes_alone():
    model = SpikeModel(1)
    for parts in (
        {"policy": SelfPlanning()},
        {"policy": SelfPlanning(), "remask": ConfidenceDrop()},
        {"policy": FixedQuota(), "remask": SelfPlanning()},
    ):
        with pytest.raises(InvalidArgumentError, match=r"SelfPlanning decides by one ranking.*leave policy out"):
            LLaDASampler(model, **parts)
    with pytest.raises(InvalidArgumentError, match="eta must be >= 0"):
        SelfPlanning(-1.0)
