"""The demo end to end on a few questions, and the arithmetic behind its claims."""

import base64
import json
import re

from typer.testing import CliRunner

from dlm_benches.cli import app
from dlm_benches.demo import measure as ms
from dlm_benches.demo.methods import Answers, Method, pad_left
from dlm_benches.tiny import vocab
from dlm_benches.tiny.tasks import TASKS


def test_demo_writes_its_files(tmp_path):
    result = CliRunner().invoke(
        app, ["demo", "--n", "20", "--task", "copy", "--task", "sudoku", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "demo.json").read_text())
    assert document["schema"] == "dlm-bench/demo/1"
    assert [t["task"] for t in document["tasks"]] == ["copy", "sudoku"]
    for task in document["tasks"]:
        rows = task["methods"]
        published = rows["published, 1 a forward"]
        assert published["forwards"] == 32
        assert published["wall_ratio"] == 1
        assert rows["ours, 1 a forward"]["same_answer_as_published"] >= 19
        assert rows["ours, 1 a forward"]["forwards"] <= 32
        assert rows["threshold 0.9"]["forwards"] < rows["ours, 1 a forward"]["forwards"] / 2
        assert task["picked"] in rows
    copy = document["tasks"][0]["methods"]
    assert copy["ours, 1 a forward"]["accuracy"] >= 0.9
    html = (tmp_path / "report.html").read_text()
    pictures = re.findall(r"data:image/png;base64,([^\"]*)", html)
    assert len(pictures) == 2, "the frontier and the error of the samplers alone"
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert 'src="http' not in html, "self-contained"
    assert "parallel decoding curse" in html


def test_demo_refuses_an_unknown_task(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--task", "chess", "--out", str(tmp_path / "x")])
    assert result.exit_code == 2
    assert "chess" in result.output
    assert not (tmp_path / "x").exists()


def oracle(name, kind, forwards, wrong_every):
    """A method with a known accuracy: every so many answers is empty."""

    def run(items):
        answers = [[] if index % wrong_every == wrong_every - 1 else item.answer for index, item in enumerate(items)]
        return Answers(answers, [len(item.answer) + 1 for item in items], [forwards] * len(items))

    return Method(name, kind, "measured", run)


def test_measure_counts_and_picks():
    task = TASKS["copy"]
    methods = [
        oracle("published", "published", 32, 10**9),
        oracle("one", "one", 16, 10**9),
        oracle("careful", "threshold", 4, 10**9),
        oracle("careless", "threshold", 1, 5),
    ]
    result = ms.measure(task, methods, 60, latency_items=2)
    summary = result.summary()
    assert summary["picked"] == "careful", "careless loses a fifth of the answers"
    assert summary["methods"]["careless"]["accuracy"] == 0.8
    assert summary["methods"]["careful"]["forwards"] == 4
    assert summary["methods"]["careless"]["same_answer_as_published"] == 48
    overall = ms.overall([result], methods)
    assert overall["tasks_within_1_point_at_8_times_fewer_forwards"] == ["copy"]


def test_pad_left_keeps_prompts_at_the_right_edge():
    ids, mask = pad_left([[1, 2, 3], [4]], vocab.PAD)
    assert ids.tolist() == [[1, 2, 3], [vocab.PAD, vocab.PAD, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
