"""What holds for every composition of parts, whatever the model says."""

import itertools
from dataclasses import replace

import pytest
import torch
from compositions import CACHES, LENGTHS, MASK, POLICIES, REMASK, STOPPING, VERIFY, Composition, compositions
from hypothesis import HealthCheck, event, given, settings

from dlm_samplers.catalogue import parts

FAST = settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck), derandomize=True)
MANY = settings(deadline=None, max_examples=2500, suppress_health_check=list(HealthCheck))


def check(composition: Composition | str) -> None:
    if isinstance(composition, str):
        event("refused at construction")
        return
    sampler, rows = composition.sampler, len(composition.prompts)
    open_before: list[dict[int, int]] = []
    held: list[set[int]] = []
    steps = 0

    def count_commits(_, step, state):
        nonlocal steps
        steps += 1
        assert steps < 5000, "does not end"
        open_before.append(dict(zip(state.index.tolist(), state.masked().sum(-1).tolist(), strict=True)))
        held.append(set(state.index[state.held].tolist()))

    out = composition.generate(return_history=True, callback_on_step_end=count_commits)
    assert out.finished.all()
    blanks = torch.tensor(composition.settings["max_new_tokens"])
    for row in range(rows):
        prompt, editable = composition.prompts[row], composition.editable[row]
        blanks[row] += editable.sum()
        got = out.sequences[row, : len(prompt)]
        assert torch.equal(got[~editable], prompt[~editable]), "changed a given position"
        assert (got[editable] != MASK).all(), "left a blank"
        new = out.sequences[row, len(prompt) : len(prompt) + composition.settings["max_new_tokens"][row]]
        assert (new != MASK).all(), "emitted a suppressed token"
    policy = sampler.policy
    if not policy.scheduled and sampler.length is None:
        for rows_held in held:
            blanks[list(rows_held)] += 1
        assert (out.nfe <= blanks).all(), "a forward of a live row committed nothing"
        for rows_held, (before, after) in zip(held, itertools.pairwise(open_before), strict=False):
            gains = (row in rows_held or after[row] < before[row] for row in after if row in before)
            assert all(gains), "no ground gained"
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(steps)).tolist()
    other = composition.generate(order, batch_size=1 + steps % 3)
    for place, row in enumerate(order):
        width = len(composition.prompts[row]) + composition.settings["max_new_tokens"][row]
        assert torch.equal(other.sequences[place, :width], out.sequences[row, :width]), "the batch decides"
        assert sampler.verify is not None or other.nfe[place] == out.nfe[row]  # drafts learn from the whole batch
    if sampler.verify is not None:
        parts = {"policy": policy, "stopping": sampler.stopping, "spec": sampler.spec}
        step_by_step = replace(composition, sampler=type(sampler)(sampler.adapter.model, **parts)).generate()
        assert torch.equal(step_by_step.sequences, out.sequences), "verification changed a token"
        assert (out.nfe <= step_by_step.nfe).all()
    event(type(policy).__name__)


@FAST
@given(compositions())
def test_every_composition_keeps_its_promises(composition):
    check(composition)


@pytest.mark.slow
@MANY
@given(compositions())
def test_thousands_of_compositions_keep_their_promises(composition):
    check(composition)


def test_every_part_takes_part():
    known = POLICIES | CACHES | REMASK | STOPPING | LENGTHS | VERIFY
    missing = [cls.__name__ for _, cls in parts() if cls not in known]
    assert not missing
