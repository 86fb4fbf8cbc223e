"""The page of expected times: current, and its formulas."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dlm_benches.cli import app
from dlm_benches.roofline import BATCHES, DEVICES, MODELS, expected, independent, markdown, published_step, workloads
from dlm_kernels.roofline import TRAFFIC, Traffic

PAGE = Path(__file__).parents[2] / "docs" / "roofline.md"


def test_the_committed_page_is_current():
    assert PAGE.read_text() == markdown(), "run `dlm-bench roofline --out docs/roofline.md`"


def test_the_command_writes_the_page(tmp_path):
    assert CliRunner().invoke(app, ["roofline", "--out", str(tmp_path / "page.md")]).exit_code == 0
    assert (tmp_path / "page.md").read_text() == markdown()
    assert CliRunner().invoke(app, ["roofline"]).output == markdown() + "\n"


def test_every_op_is_on_the_page():
    listed = {op for batch in BATCHES for model in MODELS for op, _, _ in workloads(model, batch)}
    assert listed | {op for op, _, _ in independent(1)} == set(TRAFFIC)


def test_the_slowest_unit_sets_the_time():
    device = DEVICES[0]._replace(bandwidth=10.0, matrix=100.0, vector=50.0)
    assert expected(Traffic(15, 5, 50, 100), device) == (2.0, "memory")
    assert expected(Traffic(15, 5, 150, 100), device) == (3.0, "vector")
    assert expected(Traffic(15, 5, 150, 500), device) == (5.0, "matrix")


def test_the_heads_weight_is_read_in_the_time_that_the_notes_computed():
    """LLaDA's head, 1,036 MB of bf16: 216 us on an H200 however few the rows."""
    h200 = next(device for device in DEVICES if device.name == "H200")
    head = next(traffic for op, _, traffic in workloads(MODELS[0], 1) if op == "score_hidden")
    assert expected(head, h200) == (pytest.approx(216e-6, rel=5e-3), "memory")


def test_published_step_by_hand():
    """Greedy from bf16: argmax 2; cast 2 + 8; softmax 8 + 8. Noise: cast 2 + 8, exp 16, rand 8, log, negation and power 48,
    division 24, and the argmax reads 8 instead of 2."""
    assert published_step(3, 5, 2, sampled=False) == 15 * 28
    assert published_step(3, 5, 2, sampled=True) == 15 * (28 - 2 + 8 + 10 + 16 + 8 + 48 + 24)
