"""The README's code runs as written."""

import re
from pathlib import Path

import pytest

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
