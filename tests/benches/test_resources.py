import dataclasses
import json

import pytest
from typer.testing import CliRunner

from dlm_benches.cli import app
from dlm_benches.resources import BASELINE, CompiledKernel, differences, load_baseline, violations

GOOD = CompiledKernel("triton", "some_kernel", "op: V=7", "sm_90", 8, 90, 0, 0, 1024, 128, 0)
BAD = {"spills": 2, "stack": 8, "registers": 129, "shared": 228 * 1024, "contractions": 1}


@pytest.mark.parametrize("field", BAD)
def test_what_no_kernel_may_do(field):
    assert violations(GOOD) == []
    assert len(violations(dataclasses.replace(GOOD, **{field: BAD[field]}))) == 1


def test_every_change_against_the_baseline_is_named():
    other = dataclasses.replace(GOOD, kernel="other_kernel")
    changed = dataclasses.replace(GOOD, registers=91, widest_load=32)
    assert differences([GOOD, other], [other, GOOD], complete=True) == []
    (text,) = differences([changed], [GOOD, other], complete=False)
    assert "registers 90 -> 91, widest_load 128 -> 32" in text
    assert "not in the baseline" in differences([GOOD, other], [GOOD], complete=True)[0]
    assert "in the baseline only" in differences([GOOD], [GOOD, other], complete=True)[0]


def test_the_baseline_has_every_target_and_its_row_kernels_read_128_bits_at_a_time():
    _, records = load_baseline(BASELINE)
    assert {record.target for record in records} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert not [record.key for record in records if violations(record)]
    rows = [r for r in records if r.kernel in ("summarise_kernel", "draw_kernel") and "V=126464" in r.specimen]
    assert rows
    assert all(r.widest_load == 128 for r in rows if r.target.startswith("sm_"))


def test_check_compiles_and_compares(tmp_path):
    pytest.importorskip("triton")
    options = ["resources", "--check", "--op", "commit", "--op", "keyed_uniform", "--target", "sm_90"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    document = json.loads(BASELINE.read_text())
    for record in document["kernels"]:
        record["registers"] += record["kernel"] == "commit_kernel"
    altered = tmp_path / "altered.json"
    altered.write_text(json.dumps(document))
    result = CliRunner().invoke(app, [*options, "--baseline", str(altered)])
    assert result.exit_code == 1
    assert "commit_kernel" in result.output


@pytest.mark.slow
def test_all_kernels_are_as_the_baseline_has_them():
    pytest.importorskip("triton")
    result = CliRunner().invoke(app, ["resources", "--check"])
    assert result.exit_code == 0, result.output
