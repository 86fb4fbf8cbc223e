"""The benchmark of LLaDA2Pipeline on tiny shapes: what it compares and writes. No time is asserted."""

import json

import pytest
from typer import Typer
from typer.testing import CliRunner

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install 'dlm-kernels[hf]')")
pytest.importorskip("transformers", reason="transformers is not installed (pip install 'dlm-kernels[hf]')")

from dlm_benches.integrations import pipelines

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = {"prompt": 8, "new": 24, "layers": 2, "width": 64, "vocabulary": 96, "block": 8}
TINY = (pipelines.Case(**SHAPE), pipelines.Case(**SHAPE, call={}, sharpness=2.0), pipelines.Case(**SHAPE, rows=2))


@pytest.mark.parametrize("case", TINY, ids=pipelines.Case.title)
def test_the_accelerated_text_is_the_block_causal_one_with_less_work(case):
    (result,) = pipelines.run([case], rounds=1)
    ways = result["ways"]
    assert ways["accelerated"]["same_text"]
    assert not ways["pipeline"]["same_text"]  # its 2D mask is full attention here
    assert ways["accelerated"]["forwards"] <= ways["block masks"]["forwards"]
    assert ways["accelerated"]["columns"] < ways["block masks"]["columns"]
    assert pipelines.table_of([result]).row_count == 4


def test_command(tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "CASES", TINY[:1])
    app = Typer()
    app.command()(pipelines.pipelines)
    file = tmp_path / "new" / "figures.json"
    result = CliRunner().invoke(app, ["--rounds", "2", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "tokens as block-causal" in result.output
    document = json.loads(file.read_text())
    assert document["schema"] == pipelines.SCHEMA
    assert [r["rounds"] for r in document["results"]] == [2]
