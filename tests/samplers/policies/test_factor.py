"""The factor rule and Fast-dLLM's released form of it, against the decision written down once more."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlm_kernels import TokenScores
from dlm_samplers import Factor, Guarantee


def commits(confidence, f, released):
    """Indices that commit: walk down the sorted confidences until one is below its bound; the best has no bound."""
    order = sorted(range(len(confidence)), key=lambda i: (-confidence[i], i))
    for place, i in enumerate(order):
        bound = np.float32(1) - np.float32(f) / np.float32(place + 2)
        if place > 0 and np.float32(confidence[i]) < bound:
            break
    else:
        place += 1
    if released and place == len(order) - 1:
        place += 1  # stopping at the last index is taken for having passed it
    return set(order[: max(place, 1)])


@pytest.mark.parametrize("released", [False, True])
def test_the_decision_is_the_one_written_down(released):
    generator = torch.Generator().manual_seed(3)
    differing = 0
    for f in (0.3, 1.0, 2.5):
        rows, width = 300, 9
        confidence = 1 - torch.rand(rows, width, generator=generator) ** 3
        confidence = (confidence * 64).round() / 64  # ties
        active = torch.rand(rows, width, generator=generator) < torch.rand(rows, 1, generator=generator)
        state = SimpleNamespace(active=active, remaining=active.sum(-1), per_request=lambda value: value)
        scores = TokenScores(confidence.long(), *[confidence] * 4)
        got = Factor(f, upstream_quirk=released).select(scores, state)
        alone = [
            Factor(f, upstream_quirk=released).select(
                TokenScores(*[part[i : i + 1] for part in scores]),
                SimpleNamespace(active=active[i : i + 1], remaining=active[i : i + 1].sum(-1), per_request=lambda v: v),
            )
            for i in range(rows)
        ]
        assert torch.equal(torch.cat(alone), got)
        for row in range(rows):
            places = active[row].nonzero()[:, 0].tolist()
            if not places:
                assert not got[row].any()
                continue
            values = confidence[row, places].tolist()
            expected = commits(values, f, released)
            assert got[row].nonzero()[:, 0].tolist() == sorted(places[i] for i in expected)
            differing += expected != commits(values, f, not released)
    assert differing > 20, "the quirk shows"


def test_the_quirk_costs_the_bound():
    assert Factor().guarantee is Guarantee.BOUNDED
    assert Factor(upstream_quirk=True).guarantee is Guarantee.APPROXIMATE
