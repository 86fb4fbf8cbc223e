"""What `dlm-bench compare` reports as changed, and what it takes for noise."""

import json

import pytest
from typer.testing import CliRunner

from dlm_benches.cli import app
from dlm_benches.kernels.compare import compare
from dlm_benches.kernels.report import SCHEMA


def figures(median, low, high):
    return {"median_ms": median, "p20_ms": low, "p80_ms": high}


def document(candidates, op="commit_", **environment):
    case = {"op": op, "shape": {"batch": 2}, "dtype": "int64", "inputs": "random", "settings": "default"}
    environment = {"cpu": "a", "threads": 2, **environment}
    return {"schema": SCHEMA, "environment": environment, "results": [{**case, "candidates": candidates}]}


def test_overlapping_intervals_are_noise():
    before = document({"commit_": figures(1.0, 0.9, 1.2)})
    after = document({"commit_": figures(1.3, 1.2, 1.4)})
    assert compare(before, after).changes == []
    assert compare(before, after).same == 1


@pytest.mark.parametrize(("after", "factor"), [((2.0, 1.5, 2.5), 2.0), ((0.5, 0.4, 0.8), 0.5)])
def test_disjoint_intervals_are_changes_in_both_directions(after, factor):
    found = compare(document({"commit_": figures(1.0, 0.9, 1.2)}), document({"commit_": figures(*after)}))
    assert [change.factor for change in found.changes] == [factor]
    assert found.changes[0].case == "commit_: batch = 2, int64, random, default"
    assert found.same == 0


def test_the_slowest_change_comes_first():
    before = document({name: figures(1.0, 0.9, 1.1) for name in "abc"})
    after = document({"a": figures(0.5, 0.4, 0.6), "b": figures(3.0, 2.9, 3.1), "c": figures(2.0, 1.9, 2.1)})
    assert [change.candidate for change in compare(before, after).changes] == ["b", "c", "a"]


def test_what_is_in_one_file_only_is_listed():
    before = document({"a": figures(1, 1, 1), "gone": figures(1, 1, 1)})
    after = document({"a": figures(1, 1, 1), "new": figures(1, 1, 1)})
    found = compare(before, after)
    assert [name for _, name in found.only_before] == ["gone"]
    assert [name for _, name in found.only_after] == ["new"]
    assert found.environment == []


def test_another_machine_is_pointed_out():
    same = {"a": figures(1, 1, 1)}
    assert compare(document(same), document(same, cpu="b")).environment == ["cpu: a -> b"]


def test_the_command_prints_changes(tmp_path):
    paths = []
    for name, median in (("before", 1.0), ("after", 4.0)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(document({"commit_": figures(median, median, median)}, cpu=name)))
    ran = CliRunner().invoke(app, ["compare", *map(str, paths)])
    assert ran.exit_code == 0, ran.output
    assert "environment differs, cpu: before -> after" in ran.output
    assert "4.00" in ran.output
    assert "1 changed, 0 within the noise" in ran.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": "dlm-bench/kernels/1"}', "has schema 'dlm-bench/kernels/1'"),
        ("[]", "is not a result of"),
        ("no json", "is not a result of"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    ran = CliRunner().invoke(app, ["compare", str(path), str(path)], env={"COLUMNS": "300"})
    assert ran.exit_code == 2
    assert message in " ".join(ran.output.replace("│", " ").split())


def test_a_missing_file_is_named(tmp_path):
    ran = CliRunner().invoke(app, ["compare", str(tmp_path / "none.json"), "x"], env={"COLUMNS": "300"})
    assert ran.exit_code == 2
    assert "none.json" in ran.output
