"""`dlm-bench samplers`: what it counts, on a few questions."""

import json

import pytest
from typer.testing import CliRunner

from dlm_benches.cli import app
from dlm_benches.samplers import caches, oracle, policies, ragged
from dlm_benches.tiny.load import load
from dlm_samplers import FixedQuota


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Tiny tensors: threads would only wait for each other."""


def run(*arguments):
    result = CliRunner().invoke(app, ["samplers", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_policies_writes_what_it_prints(tmp_path):
    path = tmp_path / "out.json"
    printed = run("--items", "4", "--task", "copy", "--json", str(path))
    document = json.loads(path.read_text())
    assert document["schema"] == "dlm-bench/samplers/1"
    rows = {row["name"]: row for row in document["tasks"][0]["methods"]}
    assert len(rows) == len(document["tasks"][0]["methods"]), "two settings have one name"
    first, one = rows["published, 1 a forward"], rows["FixedQuota(tokens_per_step=1)"]
    assert first["forwards"] == one["forwards"] == 32
    assert one["same_answer_as_published"] == 4
    fast = rows["Threshold()"]
    assert fast["times_fewer_forwards"] == 32 / fast["forwards"] > 10
    verified = rows["FixedQuota(tokens_per_step=1) + DraftVerify(width=16)"]
    assert verified["forwards"] < 16
    assert verified["accuracy"] == one["accuracy"]
    assert "Threshold()" in document["goals"]["any at 12x fewer"]
    assert "copy, 4 questions" in printed
    assert all(name in printed for name in ("Credit()", "KLStable()", "Dilated()"))


def test_a_goal_counts_tasks_by_guarantee_forwards_and_accuracy():
    def row(name, guarantee, times, within):
        return {"name": name, "guarantee": guarantee, "times_fewer_forwards": times, "within_1_point": within}

    results = [
        {"task": "a", "methods": [row("x", "bounded", 7, True), row("y", "approximate", 20, True)]},
        {"task": "b", "methods": [row("x", "bounded", 13, True), row("y", "approximate", 20, False)]},
        {"task": "c", "methods": [row("x", "bounded", 5.9, True), row("y", "approximate", 13, True)]},
    ]
    found = policies.goals(results)
    assert found["bounded at 6x fewer"] == {"x": ["a", "b"]}
    assert found["any at 12x fewer"] == {"y": ["a", "c"], "x": ["b"]}


def test_a_refilled_batch_computes_what_is_needed_and_the_waiting_one_more():
    document = ragged.run(load("reasoning"), prompts=12, batch=4, rounds=1)
    assert document["rows_equal_to_alone"] == 12
    assert document["row_forwards"]["refilled"] == document["row_forwards"]["needed"]
    assert document["row_forwards"]["waiting for the slowest"] > document["row_forwards"]["needed"]


def test_the_oracle_is_plotted(tmp_path, monkeypatch):
    grid = [("random order", FixedQuota("random", tokens_per_step=k), None) for k in (1, 8)]
    monkeypatch.setattr(oracle, "sampler_grid", lambda length: grid)
    errors = oracle.transition_errors(rows=20, length=8)
    oracle.plot(errors, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").stat().st_size > 5000
    assert [row["family"] for row in errors] == ["the chain itself", "random order", "random order"]


def test_bad_options_are_named():
    result = CliRunner().invoke(app, ["samplers", "--task", "chess"])
    assert result.exit_code == 2
    assert "chess" in result.output
    result = CliRunner().invoke(app, ["samplers", "--picture", "x.png"])
    assert result.exit_code == 2


def test_caches_are_compared_with_no_cache():
    (found,) = caches.quality(load("reasoning"), 6, ["sudoku"], lambda: None)
    rows = {row["cache"]: row for row in found["caches"]}
    none = rows.pop("none")
    assert none["answers_that_differ"] == none["tokens_that_differ"] == 0
    assert abs(none["confidence_bias"]) < 1e-5, "without a cache the confidence is the model's own"
    assert none["confidence_bias_p1_p99"] == pytest.approx([0, 0], abs=1e-4)
    assert all(row["columns"] < none["columns"] for row in rows.values())
    assert max(row["confidence_bias_p1_p99"][1] for row in rows.values()) > 1e-3
    assert caches.share_that_differs([[1, 2, 3], [4]], [[1, 9], [4]]) == pytest.approx(2 / 4)


def test_caches_are_timed_on_a_model_of_their_own():
    document = caches.speed(rounds=1, prompt=24, new=16)
    rows = {row["cache"]: row for row in document["caches"]}
    assert rows["none"]["columns"] == rows["none"]["forwards"] * 40
    assert rows["none"]["times_faster"] == [1.0, 1.0, 1.0]
    assert rows["PrefixCache()"]["columns"] < rows["none"]["columns"]
    caches.table_of_speed(document)
