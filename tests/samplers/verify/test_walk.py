"""The pieces of draft and verify against plain Python."""

import math
from types import SimpleNamespace

import pytest
import torch

from dlm_samplers.verify.drafters import UNFORESEEN, places
from dlm_samplers.verify.patterns import Chain, Graph, Prefixes
from dlm_samplers.verify.walk import on_path, successors, until_stopped, walk


def states(tokens, step, rank):
    position_memory = {"rank": torch.tensor(rank)[:, None].expand(-1, 2), "draft_verify.own": torch.rand(len(rank), 2)}
    memory = {"same": torch.ones(len(rank))}
    return SimpleNamespace(
        tokens=torch.tensor(tokens), step=torch.tensor(step), memory=memory, position_memory=position_memory
    )


def test_a_state_is_a_canvas_a_step_and_what_is_remembered():
    canvases = [[9, 9], [1, 9], [1, 9], [1, 9], [1, 2]]
    nodes = states(canvases, [0, 2, 1, 1, 2], [0, 0, 7, 0, 0])
    after = states([[1, 9], [1, 2], [1, 2], [1, 2], [1, 2]], [1, 3, 2, 2, 3], [0, 0, 0, 0, 0])
    assert successors(nodes, after, 5, ("step",)).tolist() == [[3, 5, 4, 4, 5]]
    nodes.position_memory["rank"] = after.position_memory["rank"]
    assert successors(nodes, after, 5, ("step",)).tolist() == [[2, 5, 4, 4, 5]]
    assert successors(nodes, after, 5, ()).tolist() == [[1, 4, 4, 4, 5]]


def test_walks_and_stops_are_followed_node_by_node():
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        width = int(torch.randint(1, 9, (), generator=generator))
        # A successor has at least one commit more, so walks never come back: here they go to higher nodes.
        steps = torch.randint(1, width + 2, (4, width), generator=generator)
        successor = (torch.arange(width) + steps).clamp(max=width)
        live = torch.rand(4, width, generator=generator) < 0.8
        path = walk(successor)
        stopped = until_stopped(path, live.flatten())
        for row in range(4):
            expected, ends = [0], None
            while len(expected) <= width and (after := int(successor[row, expected[-1]])) < width:
                expected.append(after)
            ends = next((i for i, node in enumerate(expected) if not live[row, node]), len(expected))
            assert path[row].tolist() == expected + [width] * (width - len(expected))
            kept = expected[: ends + 1]
            assert stopped[row].tolist() == kept + [width] * (width - len(kept))
            assert on_path(stopped)[row].tolist() == [node in kept for node in range(width)]


@pytest.mark.parametrize("per_step", [1, 2, 3])
@pytest.mark.parametrize("block", [None, 4])
def test_places_are_those_of_a_walk_that_keeps_the_order(block, per_step):
    generator = torch.Generator().manual_seed(per_step)
    for _ in range(100):
        width, prompt = 14, int(torch.randint(0, 6, (), generator=generator))
        masked = torch.rand(1, width, generator=generator) < 0.7
        order = torch.randint(0, 5, (1, width), generator=generator).float()  # ties
        order[torch.rand(1, width, generator=generator) < 0.1] = -math.inf
        if not masked.any():
            continue
        first = int(masked.int().argmax())
        end = width if block is None else min(prompt + ((first - prompt) // block + 1) * block, width)
        if block is not None and first < prompt:
            end = min(end, prompt)
        state = SimpleNamespace(
            tokens=torch.zeros(1, width, dtype=torch.long),
            masked=lambda masked=masked: masked,
            column=torch.arange(width),
            prompt_length=torch.tensor([prompt]),
            block_length=block,
            block_end=torch.tensor([end]),
        )
        open_, expected, step = set(masked[0].nonzero()[:, 0].tolist()), {}, 0
        open_ -= {p for p in open_ if order[0, p] == -math.inf}
        while open_:
            here = open_
            if block is not None:
                number = min((p - prompt) // block for p in open_)
                here = {p for p in open_ if (p - prompt) // block == number}
            for p in sorted(here, key=lambda p: (-order[0, p].item(), p))[:per_step]:
                expected[p] = step
                open_.discard(p)
            step += 1
        assert places(order, state, per_step)[0].tolist() == [expected.get(p, UNFORESEEN) for p in range(width)]


def test_families_of_patterns():
    device = torch.device("cpu")
    sets, steps = Chain().widest(4, device)
    assert sets.int().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert steps.tolist() == [0, 1, 2, 3]
    for family in (Graph(), Prefixes()):
        changed = torch.tensor([[[True, False, True], [True, True, False], [False, False, False]]])
        place = torch.tensor([[[1, 2, 0]]])
        expected = {Graph: [0b11, 0b110, 0], Prefixes: [2, 0, 0]}[type(family)]
        assert family.number(changed, place).tolist() == [expected]
        sets, steps = family.widest(6, device)
        assert not sets[0].any()
        assert not sets[:, -1].any()
        assert torch.equal(steps, sets.sum(-1))
        rare = torch.tensor([[[False, True, True]]])  # places 2 and 0
        for _ in range(100):
            family.learn(rare, place, torch.tensor([[True]]))
        wanted = torch.zeros(family.reach + 1, dtype=torch.bool)
        wanted[[0, 2]] = True
        most = family.widest(2, device)[0][1]
        assert torch.equal(most, wanted) == isinstance(family, Graph), "what was met most comes first"
