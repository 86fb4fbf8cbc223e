"""Explore one: the inner policy's set and the most uncertain position left."""

from types import SimpleNamespace

import torch
from fakes import SpikeModel

from dlm_kernels import TokenScores
from dlm_samplers import AncestralUnmask, Credit, EntropyBound, ExploreOne, FixedQuota, LLaDASampler, Margin, Threshold


def test_the_position_added_is_the_one_of_greatest_entropy():
    generator = torch.Generator().manual_seed(5)
    rows, width = 400, 10
    confidence = torch.rand(rows, width, generator=generator)
    entropy = (torch.rand(rows, width, generator=generator) * 8).round()  # ties
    active = torch.rand(rows, width, generator=generator) < torch.rand(rows, 1, generator=generator)
    state = SimpleNamespace(active=active, per_request=lambda value: value)
    scores = TokenScores(confidence.long(), confidence, confidence, entropy, entropy)
    got = ExploreOne(Threshold(0.7)).select(scores, state)
    for row in range(rows):
        places = active[row].nonzero()[:, 0].tolist()
        expected = {i for i in places if confidence[row, i] >= 0.7} or set(
            sorted(places, key=lambda i: (-confidence[row, i], i))[:1]
        )
        left = sorted(set(places) - expected, key=lambda i: (-entropy[row, i], i))
        assert set(got[row].nonzero()[:, 0].tolist()) == expected | set(left[:1])


def test_every_step_but_the_last_commits_one_more():
    model = SpikeModel(2)
    settings = {"max_new_tokens": 17, "block_length": None}
    one = FixedQuota(tokens_per_step=1)
    assert LLaDASampler(model, policy=one).generate([[1, 2]], **settings).nfe.tolist() == [17]
    assert LLaDASampler(model, policy=ExploreOne(one)).generate([[1, 2]], **settings).nfe.tolist() == [9]


def test_it_takes_over_what_the_inner_policy_says_of_itself():
    scores = TokenScores(*torch.rand(5, 1, 4))
    assert not ExploreOne(EntropyBound()).keyed_by_step
    assert ExploreOne(Threshold()).keyed_by_step
    assert ExploreOne(EntropyBound(statistics="sampling")).statistics == "sampling"
    assert ExploreOne(AncestralUnmask()).scheduled
    assert ExploreOne(AncestralUnmask()).foresees
    assert ExploreOne(Credit()).needs_greedy
    assert torch.equal(ExploreOne(Margin()).preference(scores, None), scores.margin)
