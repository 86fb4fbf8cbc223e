"""AdaBlock against a plain loop over one row."""

import pytest
import torch
from fakes import SpikeModel
from plain_rows import PlainRow, agree, best, cases

from dlm_kernels import InvalidArgumentError
from dlm_samplers import DAEDAL, AdaBlock, BlockCache, FixedQuota, LLaDASampler, Threshold


def ada_block(model, prompt, new, default, delimiters, tau_d, window, tau):
    """The row and the lengths of its blocks."""
    row, begin, blocks = PlainRow(model, prompt, new), len(prompt), []
    while begin < row.end:
        row.forward()
        reach = min(int(window * new), row.end - begin)
        found = [i for i in range(begin, begin + reach) if row.proposal[i] in delimiters]
        ends = best(found, row.confidence, 1)
        if ends and row.confidence[ends[0]] >= tau_d:
            end = ends[0] + 1
        else:
            end = row.end if default is None else min(begin + default, row.end)
        blocks.append(end - begin)
        while True:
            masked = row.masked(begin, end)
            row.commit([i for i in masked if row.confidence[i] >= tau] or best(masked, row.confidence, 1))
            if not row.masked(begin, end):
                break
            row.forward()
        begin = end
    return row, blocks


@pytest.mark.parametrize(
    ("default", "delimiters", "tau_d", "window"),
    [(8, (5, 6, 7), 0.3, 0.25), (5, (1,), 0.1, 1.0), (None, (1, 2, 3, 4), 0.5, 0.5), (3, tuple(range(12)), 0.2, 0.6)],
)
def test_ada_block_is_the_plain_loop(default, delimiters, tau_d, window):
    lengths = set()
    for model, prompts, budgets in cases(20, seed=default or 0, longest=30):
        sampler = LLaDASampler(model, policy=AdaBlock(delimiters, tau_d, window, Threshold(0.6)))
        out = sampler.generate(prompts, max_new_tokens=budgets, block_length=default)
        rows = [
            ada_block(model, p.tolist(), b, default, delimiters, tau_d, window, 0.6)
            for p, b in zip(prompts, budgets, strict=True)
        ]
        agree(out, prompts, budgets, [row for row, _ in rows])
        lengths |= {length for _, blocks in rows for length in blocks}
    assert len(lengths) > 4, "blocks of many lengths"


def test_a_delimiter_nobody_predicts_leaves_the_default_blocks():
    model = SpikeModel(4)
    model.table[:, 9] = -50.0
    prompts, settings = [[1, 2], [3, 4, 5]], {"max_new_tokens": 20, "block_length": 6}
    plain = LLaDASampler(model, policy=Threshold(0.5)).generate(prompts, **settings)
    adaptive = LLaDASampler(model, policy=AdaBlock((9,), inner=Threshold(0.5))).generate(prompts, **settings)
    assert torch.equal(adaptive.sequences, plain.sequences)
    assert torch.equal(adaptive.nfe, plain.nfe)


def test_blocks_end_in_infilling_too():
    model = SpikeModel(8)
    prompt = torch.randint(22, (3, 24), generator=torch.Generator().manual_seed(1))
    blanks = torch.rand(3, 24, generator=torch.Generator().manual_seed(2)) < 0.5
    policy = AdaBlock(tuple(range(8)), tau_d=0.1, window=1.0)
    out = LLaDASampler(model, policy=policy).generate(prompt, editable=blanks, max_new_tokens=0, block_length=4)
    assert (out.sequences != model.mask).all()
    assert torch.equal(out.sequences[~blanks], prompt[~blanks])


def test_bad_parameters_are_refused():
    for build, message in (
        (lambda: AdaBlock(()), "delimiters must name at least one"),
        (lambda: AdaBlock((1,), tau_d=0.0), r"tau_d must be in \(0, 1\], got 0.0"),
        (lambda: AdaBlock((1,), window=1.5), "window must be in"),
        (lambda: AdaBlock((1,), inner=FixedQuota()), "inner must be a policy without a schedule.*tokens_per_step"),
        (lambda: LLaDASampler(SpikeModel(1, eos=3), policy=AdaBlock((1,)), length=DAEDAL()), "DAEDAL moves columns"),
        (lambda: LLaDASampler(SpikeModel(1), policy=AdaBlock((1,)), cache=BlockCache()), "computes .* use PrefixCache"),
        (lambda: LLaDASampler(SpikeModel(1), policy=AdaBlock((23,))), r"delimiters must be token ids in \[0, 23\)"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            build()
