"""The commands `dlm-bench kernels` and `dlm-bench compare`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

from dlm_benches.kernels import compare as comparing
from dlm_benches.kernels import footprint, measure, report
from dlm_benches.kernels.cases import Dtype, Sizes
from dlm_kernels.dispatch import BACKENDS, devices_of, has_kernel, require
from dlm_kernels.errors import BackendUnavailableError, InvalidArgumentError


class Clock(str, Enum):
    wall = "wall"
    cpu = "cpu"


def kernels(
    op: Annotated[list[str] | None, typer.Option(help="An op; may be repeated. Default: all.")] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="May be repeated. Default: all that are there, the slow reference on small cases only."),
    ] = None,
    rows: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Rows or batch; may be repeated (score_tokens; other ops take the largest)."),
    ] = None,
    vocab: Annotated[list[int] | None, typer.Option(min=2, help="Vocabulary, for ops that have one.")] = None,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Default: the op's own choice.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: torch's.")] = None,
    compile_: Annotated[bool, typer.Option("--compile/--no-compile", help="Time torch.compile as well.")] = True,
    clock: Annotated[
        Clock, typer.Option(help="cpu, with --threads 1: on a machine that others use, what a quiet one would show.")
    ] = Clock.wall,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Times ops on every backend against eager PyTorch, published steps, torch.compile and one read of their inputs."""
    for name in op or ():
        if name not in measure.OPS:
            raise typer.BadParameter(f"{name!r} is not an op; there are {', '.join(measure.OPS)}", param_hint="--op")
    for name in backend or ():
        _check_backend(name)
    if clock is Clock.cpu and threads != 1:
        raise typer.BadParameter("sums the threads' times: give --threads 1 with it", param_hint="--clock cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    sizes = Sizes(rows, vocab, [choice.value for choice in dtype] if dtype else None)
    console = report.console()
    ops = [name for name in op or measure.OPS if not backend or any(has_kernel(name, other) for other in backend)]
    if not ops:
        raise typer.BadParameter(f"{' and '.join(backend or ())} has none of these ops", param_hint="--backend")
    cases = measure.all_cases(ops, sizes)
    try:
        footprint.check(cases)
    except InvalidArgumentError as error:
        raise typer.BadParameter(str(error), param_hint="--rows") from None
    results = measure.run(
        cases, backend, compile_, clock.value, show=lambda result: console.print(report.table_of(result))
    )
    if json_file is not None:
        report.write(json_file, results, clock.value)


def _check_backend(name: str) -> None:
    if name not in BACKENDS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(BACKENDS)}", param_hint="--backend")
    try:
        require(name)
    except BackendUnavailableError as error:
        raise typer.BadParameter(str(error), param_hint="--backend") from None
    if "cpu" not in (devices_of(name) or ("cpu",)):
        raise typer.BadParameter(f"{name} takes no CPU tensors, and nothing else is timed here", param_hint="--backend")


def compare(
    before: Annotated[Path, typer.Argument(help="A result of `dlm-bench kernels --json`.")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
) -> None:
    """What changed between two kernel results: times whose intervals from the 20th to the 80th percentile do not overlap."""
    try:
        comparison = comparing.compare_files(before, after)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    console = report.console()
    for difference in comparison.environment:
        console.print(f"environment differs, {difference}", markup=False)
    if comparison.changes:
        console.print(comparing.table_of(comparison))
    console.print(f"{len(comparison.changes)} changed, {comparison.same} within the noise")
    for what, keys in (("gone", comparison.only_before), ("new", comparison.only_after)):
        for case, candidate in keys:
            console.print(f"{what}: {case}: {candidate}", markup=False)
