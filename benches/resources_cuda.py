"""Every CUDA kernel compiled by nvcc; run as a process it prints the records as JSON. Needs no GPU.

A spill is an error of the compilation: nvcc then fails, and so does this.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from dlm_benches.resources import CompiledKernel
from dlm_kernels.cuda import sources

TARGETS = ("sm_80", "sm_90", "sm_100")
FLAGS = ("-O3", "-std=c++17", "--fmad=false")  # as dlm_kernels/cuda/module.py compiles
ASSEMBLER_FLAGS = "-v,-warn-spills,-Werror"
WARP = 32

ENTRY = re.compile(r"Compiling entry function '(\w+)' for")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
PTX_ENTRY = re.compile(r"\.entry (\w+)\(")
PTX_THREADS = re.compile(r"\.maxntid (\d+)")
PTX_LOAD = re.compile(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\b")
# A product or sum without a rounding mode may be contracted by ptxas; fma itself also comes from CUDA's exp and log.
PTX_CONTRACTIBLE = re.compile(r"\b(?:mul|add|sub)\.f(?:32|64)\b")


def ops() -> list[str]:
    """The files in `csrc/cuda` that hold kernels."""
    return sorted(path.stem for path in (sources.folder() / "cuda").glob("*.cu"))


def compiled_kernels(names: Sequence[str], targets: Sequence[str]) -> Iterator[CompiledKernel]:
    """One record per kernel and target. Raises RuntimeError with nvcc's output where a file does not compile cleanly."""
    for name in names:
        for target in targets:
            yield from file_kernels(sources.folder() / "cuda" / f"{name}.cu", target)


def file_kernels(file: Path, target: str, flags: Sequence[str] = FLAGS) -> Iterator[CompiledKernel]:
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernels.ptx")
        nvcc(*flags, "-I", str(sources.folder()), f"-arch={target}", "-ptx", str(file), "-o", str(ptx))
        cubin = ["-cubin", str(ptx), "-o", str(Path(folder, "kernels.cubin"))]
        log = nvcc("-O3", f"-arch={target}", "-Xptxas", ASSEMBLER_FLAGS, *cubin)
        code = dict(sections(PTX_ENTRY, ptx.read_text()))
    for kernel, text in sections(ENTRY, log):
        stack, stored, loaded = map(int, FRAME.search(text).groups())  # type: ignore[union-attr]
        shared = SHARED.search(text)
        loads = PTX_LOAD.findall(code[kernel])
        yield CompiledKernel(
            source="cuda",
            kernel=kernel,
            specimen=file.stem,
            target=target,
            warps=int(PTX_THREADS.search(code[kernel])[1]) // WARP,  # type: ignore[index]
            registers=int(REGISTERS.search(text)[1]),  # type: ignore[index]
            stack=stack,
            spills=(stored + loaded) // 4,
            shared=int(shared[1]) if shared else 0,
            widest_load=max((int(count or 1) * int(bits) for count, bits in loads), default=0),
            contractions=len(PTX_CONTRACTIBLE.findall(code[kernel])),
        )


def sections(start: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """The pieces of a text that each match of `start` begins, with its first group."""
    matches = list(start.finditer(text))
    ends = [match.start() for match in matches[1:]] + [len(text)]
    return [(match[1], text[match.start() : end]) for match, end in zip(matches, ends, strict=True)]


def nvcc(*arguments: str) -> str:
    compiler = shutil.which("nvcc")
    if compiler is None:
        raise RuntimeError("nvcc is not on PATH")
    result = subprocess.run([compiler, *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(result.stderr + result.stdout)
    return result.stderr + result.stdout


def main() -> None:
    """Arguments: ops and targets, comma-separated; empty for all. Other names than this source's are passed over."""
    names, targets = (argument.split(",") if argument else [] for argument in [*sys.argv[1:], "", ""][:2])
    chosen = [name for name in ops() if name in (names or ops())]
    records = compiled_kernels(chosen, [target for target in TARGETS if target in (targets or TARGETS)])
    json.dump([asdict(record) for record in records], sys.stdout)


if __name__ == "__main__":
    main()
