"""`dlm-bench resources`: what the GPU kernels take of a multiprocessor, found out without a GPU.

A source of records is a module `dlm_benches.resources_<source>` that, run as a process with comma-separated ops and targets
(empty: all), prints a JSON list of `CompiledKernel`s. This proves that kernels compile, fit and do not spill, not that they are
fast.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dlm_benches.environment import environment

SOURCES = ("triton", "cuda")
BASELINE = Path(__file__).parent / "results" / "resources.json"
SCHEMA = "dlm-bench/resources/2"

REGISTERS = 128  # a thread; more would leave fewer than 512 threads to hide the latency of memory
MATRIX_REGISTERS = 255  # of kernels that multiply matrices: accumulators live in registers
MATRIX_KERNELS = frozenset(("score_hidden_kernel", "bounds_kernel"))
AMD_REGISTERS = 256
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}  # bytes a block can have


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel compiled for one target."""

    source: str  # one of SOURCES
    kernel: str
    specimen: str  # the op and what it was compiled for
    target: str
    warps: int
    registers: int  # a thread
    stack: int  # bytes a thread
    spills: int  # instructions that store or load spilled registers
    shared: int  # bytes a block
    widest_load: int  # bits, from global memory
    contractions: int  # fused multiply-adds that the source did not ask for; they would change tokens

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.source, self.kernel, self.specimen, self.target


def violations(record: CompiledKernel) -> list[str]:
    """What no kernel may do, whatever the baseline says."""
    limit = MATRIX_REGISTERS if record.kernel in MATRIX_KERNELS else REGISTERS
    if record.target.startswith("gfx"):
        limit = AMD_REGISTERS
    faults = [
        (record.spills > 0, f"{record.spills} spill instructions"),
        (record.stack > 0, f"{record.stack} bytes of stack"),
        (record.registers > limit, f"{record.registers} registers, allowed {limit}"),
        (
            record.shared > SHARED[record.target],
            f"{record.shared} bytes of shared memory, allowed {SHARED[record.target]}",
        ),
        (
            record.contractions > 0 and record.kernel not in MATRIX_KERNELS,
            f"{record.contractions} multiply-adds contracted",
        ),
    ]
    return [text for wrong, text in faults if wrong]


def differences(records: list[CompiledKernel], baseline: list[CompiledKernel], complete: bool) -> list[str]:
    """What is not as the baseline has it; `complete`: all kernels were compiled, so that missing ones count."""
    known = {record.key: record for record in baseline}
    found = []
    for record in records:
        before, now = known.pop(record.key, None), asdict(record)
        if before is None:
            found.append(f"{' '.join(record.key)}: not in the baseline")
            continue
        changed = [f"{name} {old} -> {now[name]}" for name, old in asdict(before).items() if old != now[name]]
        if changed:
            found.append(f"{' '.join(record.key)}: {', '.join(changed)}")
    return found + [f"{' '.join(key)}: in the baseline only" for key in known if complete]


def collect(source: str, ops: str = "", targets: str = "") -> list[CompiledKernel]:
    """The records of one source, from a process of its own."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"dlm_benches.resources_{source}", ops, targets]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=variables)
    return [CompiledKernel(**record) for record in json.loads(result.stdout)]


def table_of(records: list[CompiledKernel]) -> Table:
    table = Table(
        title="Registers and stack a thread, shared memory a block, bits of the widest load", title_justify="left"
    )
    for column in ("kernel", "compiled for", "target", "warps", "registers", "stack", "spills", "shared", "load"):
        text = column in ("kernel", "compiled for", "target")
        table.add_column(column, justify="left" if text else "right", no_wrap=True)
    for r in records:
        numbers = (r.warps, r.registers, r.stack, r.spills, r.shared, r.widest_load)
        style = "red" if violations(r) else None
        table.add_row(r.kernel, r.specimen, r.target, *map(str, numbers), style=style)
    return table


def compilers() -> dict[str, str | None]:
    """The version of what compiles each source's kernels; None where it is missing."""
    try:
        text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
        nvcc = match[1] if (match := re.search(r"release [\d.]+, V([\d.]+)", text)) else None
    except OSError:
        nvcc = None
    return {"triton": environment()["versions"]["triton"], "cuda": nvcc}


def load_baseline(path: Path) -> tuple[dict[str, str | None], list[CompiledKernel]]:
    document = json.loads(path.read_text())
    return document["compilers"], [CompiledKernel(**record) for record in document["kernels"]]


def save(path: Path, records: list[CompiledKernel]) -> None:
    document = {
        "schema": SCHEMA,
        "environment": environment(),
        "compilers": compilers(),
        "kernels": [asdict(record) for record in records],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=1))
    os.replace(partial, path)


def resources(
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the baseline; exit 1 on any difference.")
    ] = False,
    op: Annotated[list[str] | None, typer.Option(help="Only these op files; may be repeated.")] = None,
    target: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SHARED)}. Default: all.")] = None,
    baseline: Annotated[Path, typer.Option(help="The file to write, or to compare with.")] = BASELINE,
) -> None:
    """Compiles the GPU kernels ahead of time: registers, spills, shared memory. No GPU needed; says nothing about speed."""
    if not check and (op or target):
        raise typer.BadParameter("a baseline holds all kernels and targets: --op and --target go with --check")
    if unknown := set(target or ()) - set(SHARED):
        raise typer.BadParameter(f"--target must be of {', '.join(SHARED)}, got {', '.join(sorted(unknown))}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a log file has no width of its own
    here = compilers()
    missing = [source for source in SOURCES if here[source] is None]
    if missing and not check:
        raise typer.BadParameter(
            f"a baseline holds all kernels, and nothing here compiles those of {', '.join(missing)}"
        )
    for source in missing:
        console.print(f"No compiler for the {source} kernels: they are not checked.", style="yellow")
    there = [source for source in SOURCES if source not in missing]
    records = [r for source in there for r in collect(source, ",".join(op or ()), ",".join(target or ()))]
    console.print(table_of(records))
    faults = [f"{' '.join(record.key)}: {text}" for record in records for text in violations(record)]
    if check:
        versions, known = load_baseline(baseline)
        for source in there:
            if versions[source] != here[source]:
                console.print(
                    f"The baseline of {source} is of version {versions[source]}: only the limits are checked."
                )
                continue
            ours, theirs = ([r for r in listed if r.source == source] for listed in (records, known))
            faults += differences(ours, theirs, complete=not (op or target))
    for fault in faults:
        console.print(fault, style="red")
    if faults:
        raise typer.Exit(1)
    if not check:
        save(baseline, records)
        console.print(f"wrote {baseline}")
