"""The kernels' source files: inside an installed package, or the tree's `csrc` in an editable install."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGED = HERE / "src"  # setup.py puts csrc/common and csrc/cuda there
TREE = HERE.parent.parent / "csrc"


def folder() -> Path:
    return PACKAGED if PACKAGED.is_dir() else TREE


@cache
def headers() -> dict[str, str]:
    """Text of every header by the name under which it is included."""
    root = folder()
    return {
        str(path.relative_to(root)): path.read_text()
        for part in ("common", "cuda")
        for path in sorted((root / part).glob("*.h"))
    }


@cache
def kernel_source(file: str) -> str:
    """Text of `csrc/cuda/<file>.cu`."""
    return (folder() / "cuda" / f"{file}.cu").read_text()


@cache
def source_hash(file: str) -> str:
    """Changes whenever anything changes that goes into the compilation of this file."""
    return hashlib.sha256(repr((kernel_source(file), sorted(headers().items()))).encode()).hexdigest()
