"""DUS: the rounds of the authors' planner, whatever the model says."""

import pytest
import torch
from fakes import SpikeModel, TableModel
from row_by_row import VOCAB, assert_same_path, every_setting

from dlm_kernels import InvalidArgumentError
from dlm_samplers import Dilated, Guarantee, LLaDASampler


def rounds(length, base):
    """The authors' dilated_unmask_levels, before it merges the last."""
    levels, seen, stride = [], set(), length // base
    while stride >= 1:
        levels.append([i for i in range(length) if i % stride == 0 and i not in seen])
        seen.update(levels[-1])
        stride //= base
    levels.append([i for i in range(length) if i not in seen])
    return [level for level in levels if level]


class Planned:
    def __init__(self, base, block_length):
        self.base, self.block_length = base, block_length

    def __call__(self, step):
        start, end = step.block
        if self.block_length is None:
            start = step.prompt
        if step.new_block:
            self.plan = rounds(self.block_length or end - start, self.base)
        while not (now := [start + i for i in self.plan.pop(0) if start + i in step.masked]):
            pass
        return now


@every_setting
@pytest.mark.parametrize("base", [2, 3, 10])
def test_the_path_is_the_plan(base, block_length, temperature, dream):
    for seed in range(5):
        assert_same_path(
            Dilated(base),
            lambda: Planned(base, block_length),
            model=SpikeModel(seed, vocab=VOCAB),
            block_length=block_length,
            temperature=temperature,
            seed=seed,
            dream=dream,
            longest=40,
        )


@pytest.mark.parametrize(("block", "forwards"), [(8, 3), (16, 4), (32, 5), (64, 6)])
def test_a_block_takes_log2_b_forwards(block, forwards):
    out = LLaDASampler(TableModel(1), policy=Dilated()).generate(
        torch.zeros(2, 3, dtype=torch.long), max_new_tokens=2 * block, block_length=block
    )
    assert out.nfe.tolist() == [2 * forwards] * 2


def test_blanks_scattered_over_a_prompt_cost_no_empty_forward():
    model = TableModel(1)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.vocab - 1, (20, 40), generator=generator)
    blanks = torch.rand(20, 40, generator=generator) < 0.1
    for block_length in (None, 8):
        out = LLaDASampler(model, policy=Dilated()).generate(
            prompt, editable=blanks, max_new_tokens=0, block_length=block_length
        )
        assert (out.sequences[blanks] != model.mask).all()
        assert (out.nfe <= blanks.sum(-1)).all()


def test_only_the_round_is_scored(monkeypatch):
    scored = []
    real = LLaDASampler.score

    def spy(self, evaluation, state, scoring):
        scored.append(int(evaluation.scored.sum()))
        return real(self, evaluation, state, scoring)

    monkeypatch.setattr(LLaDASampler, "score", spy)
    LLaDASampler(TableModel(1), policy=Dilated()).generate(
        torch.zeros(1, 3, dtype=torch.long), max_new_tokens=16, block_length=16
    )
    assert scored == [2, 2, 4, 8]


def test_bad_parameters_are_named():
    with pytest.raises(InvalidArgumentError, match="base must be an int >= 2, got 1"):
        Dilated(1)
    assert Dilated.guarantee is Guarantee.APPROXIMATE
