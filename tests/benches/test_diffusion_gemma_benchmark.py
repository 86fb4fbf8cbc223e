"""The benchmark of DiffusionGemma's generate on tiny shapes: what it counts and writes. No time is asserted."""

import json

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

pytest.importorskip(
    "transformers.models.diffusion_gemma", reason="no transformers >= 5.11 (pip install 'dlm-kernels[hf]')"
)

from dlm_benches.integrations import diffusion_gemma
from dlm_benches.integrations.diffusion_gemma import STEPS


def test_both_run_as_many_forwards_and_the_model_is_given_back(one_thread):
    results = diffusion_gemma.run(1, vocabulary=96, canvas_length=8, batches=(1, 2))
    assert [result["case"] for result in results] == [f"[{b}, 8, 96], {t}" for t in ("fp32", "bf16") for b in (1, 2)]
    for result in results:
        assert result["forwards"] == {"fused": [STEPS], "original": [STEPS]}
        assert result["times_faster"]["median"] > 0
    assert diffusion_gemma.table_of(results).row_count == 4
    model = diffusion_gemma.random_model(96, 8)
    with diffusion_gemma.watched(model):
        assert "forward" in vars(model)
    assert "forward" not in vars(model)


def test_command(tmp_path, monkeypatch, one_thread):
    tiny = diffusion_gemma.run(1, vocabulary=96, canvas_length=8, batches=(1,), dtypes=("fp32",))
    monkeypatch.setattr(diffusion_gemma, "run", lambda rounds: [tiny[0] | {"rounds": rounds}])
    app = Typer()
    app.command()(diffusion_gemma.diffusion_gemma)
    file = tmp_path / "new" / "figures.json"
    result = CliRunner().invoke(app, ["--rounds", "2", "--threads", str(torch.get_num_threads()), "--json", str(file)])
    assert result.exit_code == 0, result.output
    document = json.loads(file.read_text())
    assert document["schema"] == diffusion_gemma.SCHEMA
    assert document["results"][0]["rounds"] == 2
