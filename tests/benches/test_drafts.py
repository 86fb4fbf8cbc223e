"""The suite of drafts, at its smallest."""

from functools import partial

import pytest
import torch

from dlm_benches.samplers import drafts
from dlm_benches.tiny.load import load
from dlm_samplers import FixedQuota


@pytest.fixture(scope="module")
def model():
    return load("reasoning")


def test_the_document_counts_what_was_asked(model, monkeypatch):
    monkeypatch.setattr(drafts, "BATCHES_TIMED", (1,))
    monkeypatch.setattr(drafts, "time_widths", partial(drafts.time_widths, rounds=1))
    monkeypatch.setattr(drafts, "TEXT_PROMPTS", 1)
    monkeypatch.setattr(drafts, "policies", lambda: [FixedQuota("random", tokens_per_step=1)])
    advanced, tables = [], []
    with torch.inference_mode():
        document = drafts.run(model, 2, ["copy"], advance=lambda: advanced.append(1), show=tables.append)
    assert len(advanced) == drafts.steps(2, ["copy"]) == 2
    assert len(tables) == 3
    assert [row["n"] for row in document["text"]] == [1, 1]
    for row in document["rows"]:
        assert row["equal_to_sequential"] == row["n"] == 2
        assert row["sequential_forwards"] == 2 * drafts.NEW_TOKENS
        assert row["committed_per_forward"] > 4
    assert {row["width"] for row in document["times"]} == {"sequential", *drafts.WIDTHS_TIMED}


def test_calibration_finds_sets_in_falling_order(model, monkeypatch):
    monkeypatch.setattr(drafts, "TASKS", {"copy": drafts.TASKS["copy"]})
    with torch.inference_mode():
        graph = drafts.calibrate(model, 1)
    assert next(iter(graph)) == 1
    assert list(graph.values()) == sorted(graph.values(), reverse=True)
    assert all(0 < weight <= 1 for weight in graph.values())
