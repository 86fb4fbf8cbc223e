"""The README's tables say what is there; its code runs in test_docs.py."""

import re
from pathlib import Path

from dlm_kernels.dispatch import BACKENDS, has_kernel
from dlm_kernels.library import SCHEMAS

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_table_of_ops_is_what_is_there():
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| .* \| ([a-z ]*) \|$", README.read_text(), flags=re.MULTILINE)
    listed = {op.strip("`"): backends.split() for ops, backends in rows for op in ops.split(", ")}
    there = {op: [name for name in BACKENDS if name != "reference" and has_kernel(op, name)] for op in SCHEMAS}
    assert listed == there
