"""Registers, stack, spills, shared memory and load width of the CUDA kernels, from nvcc's ptxas. Needs no GPU.

A spill is an error: nvcc then fails, and so does `resources`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlm_kernels.cuda import sources

TARGETS = ("sm_80", "sm_90", "sm_100")
FLAGS = ("-O3", "-std=c++17", "--fmad=false")  # as dlm_kernels/cuda/module.py compiles
ASSEMBLER_FLAGS = "-v,-warn-spills,-Werror"
DTYPES = ("fp32", "bf16", "fp16")

ENTRY = re.compile(r"Compiling entry function '(\w+)' for")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
PTX_ENTRY = re.compile(r"\.entry (\w+)\(")
PTX_LOAD = re.compile(r"\bld\.global(?:\.nc)?(?:\.L\w+::\w+)*(?:\.v(\d))?\.[bufs](\d+)")


@dataclass(frozen=True)
class KernelResources:
    """What one kernel takes on one GPU architecture."""

    source: str  # file in csrc/cuda
    kernel: str
    target: str
    dtype: str  # of the logits; empty for kernels that do not depend on it
    registers: int  # of a thread
    stack: int  # bytes of a thread
    spill_stores: int
    spill_loads: int
    shared_bytes: int  # of a block
    load_bits: int  # widest load from global memory


def resources(targets: Sequence[str] = TARGETS) -> list[KernelResources]:
    """One record for each kernel and target. Raises RuntimeError with nvcc's output where a file does not compile cleanly."""
    files = sorted((sources.folder() / "cuda").glob("*.cu"))
    return [record for target in targets for file in files for record in file_resources(file, target)]


def file_resources(file: Path, target: str, *flags: str) -> list[KernelResources]:
    """The kernels of one file; `flags` are added to nvcc's."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernels.ptx")
        include = ["-I", str(sources.folder())]
        _nvcc(*FLAGS, *include, *flags, f"-arch={target}", "-ptx", str(file), "-o", str(ptx))
        cubin = ["-cubin", str(ptx), "-o", str(Path(folder, "kernels.cubin"))]
        log = _nvcc("-O3", *flags, f"-arch={target}", "-Xptxas", ASSEMBLER_FLAGS, *cubin)
        widths = load_widths(ptx.read_text())
    records = []
    for kernel, text in _sections(ENTRY, log):
        stack, stores, loads = map(int, FRAME.search(text).groups())  # type: ignore[union-attr]
        shared = SHARED.search(text)
        records.append(
            KernelResources(
                source=file.name,
                kernel=kernel,
                target=target,
                dtype=next((name for name in DTYPES if kernel.endswith(name)), ""),
                registers=int(REGISTERS.search(text).group(1)),  # type: ignore[union-attr]
                stack=stack,
                spill_stores=stores,
                spill_loads=loads,
                shared_bytes=int(shared.group(1)) if shared else 0,
                load_bits=widths[kernel],
            )
        )
    return records


def load_widths(ptx: str) -> dict[str, int]:
    """Bits of the widest load from global memory, by kernel."""
    return {
        kernel: max((int(count or 1) * int(bits) for count, bits in PTX_LOAD.findall(text)), default=0)
        for kernel, text in _sections(PTX_ENTRY, ptx)
    }


def _sections(start: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """The pieces of a text that each match of `start` begins, with its first group."""
    matches = list(start.finditer(text))
    ends = [match.start() for match in matches[1:]] + [len(text)]
    return [(match.group(1), text[match.start() : end]) for match, end in zip(matches, ends, strict=True)]


def _nvcc(*arguments: str) -> str:
    compiler = shutil.which("nvcc")
    if compiler is None:
        raise RuntimeError("nvcc is not on PATH")
    result = subprocess.run([compiler, *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(result.stderr + result.stdout)
    return result.stderr + result.stdout
