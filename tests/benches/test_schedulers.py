"""The benchmark of diffusers' schedulers on tiny shapes: what it compares and writes. No time is asserted."""

import json

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install 'dlm-kernels[hf]')")

from dlm_benches.integrations import schedulers

TINY = schedulers.cases(llada2=(2, 8, 64), gemma=(1, 8, 96))


@pytest.mark.parametrize("case", TINY, ids=schedulers.Case.title)
def test_cases_run_and_agree(case):
    (result,) = schedulers.run([case], rounds=1)
    assert result["times_faster"]["p20"] > 0
    assert schedulers.table_of([result]).row_count == 1


def test_disagreement_stops_the_benchmark():
    case = TINY[0]
    ways = schedulers.build(case)
    output = ways["diffusers"]()
    output.prev_sample = output.prev_sample + 1
    with pytest.raises(AssertionError, match="prev_sample differs"):
        schedulers.check(case, {"fused": ways["fused"], "diffusers": lambda: output})


def test_command(tmp_path, monkeypatch):
    monkeypatch.setattr(schedulers, "cases", lambda: TINY)
    app, threads = Typer(), torch.get_num_threads()
    app.command()(schedulers.schedulers)
    file = tmp_path / "new" / "figures.json"
    options = ["--scheduler", "EntropyBoundScheduler", "--rounds", "2", "--json", str(file)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    document = json.loads(file.read_text())
    assert document["schema"] == schedulers.SCHEMA
    assert [r["rounds"] for r in document["results"]] == [2, 2]
    assert CliRunner().invoke(app, ["--scheduler", "DDPM"]).exit_code == 2
    assert torch.get_num_threads() == threads
