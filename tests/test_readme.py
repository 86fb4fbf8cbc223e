"""The README's code runs as written."""

import re
from pathlib import Path

import pytest

from dlm_kernels.dispatch import BACKENDS, has_kernel
from dlm_kernels.library import SCHEMAS

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCKS = re.findall(r"<!-- quickstart.*?-->\n```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_there_are_blocks():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block, capsys):
    exec(compile(block, str(README), "exec"), {})
    printed = capsys.readouterr().out
    if "load(" in block:
        assert "eqrtwy" in printed, "sorted letters"
        assert "2111" in printed, "123 + 989, lowest digit first"
        assert "approximate" in printed
    else:
        assert "committed" not in printed or "tensor" in printed


def test_the_table_of_ops_is_what_is_there():
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| .* \| ([a-z ]*) \|$", README.read_text(), flags=re.MULTILINE)
    listed = {op.strip("`"): backends.split() for ops, backends in rows for op in ops.split(", ")}
    there = {op: [name for name in BACKENDS if name != "reference" and has_kernel(op, name)] for op in SCHEMAS}
    assert listed == there
