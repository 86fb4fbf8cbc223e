"""The order that is fixed for some commits at a time, against plain Python."""

from itertools import pairwise

import pytest
import torch
from fakes import SpikeModel, TableModel

from dlm_kernels import InvalidArgumentError, score_tokens
from dlm_samplers import FixedQuota, FrozenConfidence, LLaDASampler


def reference(model, prompt, new, block, every, order):
    """One row at temperature 0, straight from the definition."""
    canvas = prompt.tolist() + [model.mask] * new
    for start in range(len(prompt), len(canvas), block):
        queue = []
        positions = range(start, min(start + block, len(canvas)))
        while masked := [p for p in positions if canvas[p] == model.mask]:
            scores = score_tokens(model(torch.tensor([canvas])).logits, suppress_ids=[model.mask])
            certainty = scores.margin[0] if order == "margin" else -scores.entropy[0]
            if not queue:
                queue = sorted(masked, key=lambda p: (-certainty[p].item(), p))[:every]
            position = queue.pop(0)
            canvas[position] = int(scores.token[0, position])
    return canvas


@pytest.mark.parametrize("order", ["margin", "entropy"])
@pytest.mark.parametrize("every", [1, 2, 4, 9])
def test_commits_follow_the_definition(every, order):
    """40 batches of 5 ragged rows: 200 walks for each order and interval."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        model = (TableModel, SpikeModel)[seed % 2](seed)
        prompts = [
            torch.randint(model.vocab - 1, (n,), generator=generator)
            for n in torch.randint(1, 8, (5,), generator=generator).tolist()
        ]
        block = (4, 7, 11)[seed % 3]
        out = LLaDASampler(model, policy=FrozenConfidence(every, order)).generate(
            prompts, max_new_tokens=11, block_length=block
        )
        for row, prompt in enumerate(prompts):
            expected = reference(model, prompt, 11, block, every, order)
            assert out.sequences[row, : len(expected)].tolist() == expected
        assert (out.nfe == 11).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_fixing_the_order_at_every_commit_is_the_margin_order(temperature):
    model = SpikeModel(3)
    prompts = torch.zeros(4, 2, dtype=torch.long)
    settings = {"max_new_tokens": 20, "block_length": 8, "temperature": temperature}
    frozen = LLaDASampler(model, policy=FrozenConfidence(1)).generate(prompts, **settings)
    fresh = LLaDASampler(model, policy=FixedQuota("margin", tokens_per_step=1)).generate(prompts, **settings)
    assert torch.equal(frozen.sequences, fresh.sequences)


def test_the_order_does_not_look_at_the_sampled_tokens():
    """The first block of commits is the same set of positions under any noise."""
    model = SpikeModel(5)
    settings = {"max_new_tokens": 12, "block_length": 12, "return_history": True}
    prompt = torch.zeros(1, 2, dtype=torch.long)
    sampler = LLaDASampler(model, policy=FrozenConfidence(4))
    orders, tokens = set(), set()
    for seed in range(8):
        history = sampler.generate(prompt, temperature=2.0, seed=seed, **settings).history
        orders.add(tuple(int((a != b).nonzero()[0, 1]) for a, b in pairwise(history[:5])))
        tokens.add(tuple(history[4][0].tolist()))
    assert len(orders) == 1
    assert len(tokens) > 1


def test_bad_parameters():
    for every in (0, True, 2.5):
        with pytest.raises(InvalidArgumentError, match="every must be an int >= 1"):
            FrozenConfidence(every)
    with pytest.raises(InvalidArgumentError, match=r"order must be one of \('margin', 'entropy'\), got 'confidence'"):
        FrozenConfidence(order="confidence")
