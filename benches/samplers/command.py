"""The command `dlm-bench samplers`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dlm_benches.environment import environment
from dlm_benches.samplers import policies as policy_suite
from dlm_benches.samplers import ragged as ragged_suite
from dlm_benches.tiny.load import load
from dlm_benches.tiny.model import TinyDLM
from dlm_benches.tiny.tasks import TASKS

SCHEMA = "dlm-bench/samplers/1"
WIDTH = 150  # of tables in a log file, which has none of its own


class Suite(str, Enum):
    policies = "policies"
    ragged = "ragged"


def samplers(
    suite: Annotated[Suite, typer.Option(help="What to measure.")] = Suite.policies,
    items: Annotated[int, typer.Option(min=1, help="Questions a task.")] = 1000,
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks; may be repeated.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Quality, forwards and time of samplers on the bundled models, with what each of them preserves."""
    unknown = sorted(set(task or ()) - set(TASKS))
    if unknown:
        raise typer.BadParameter(f"unknown {unknown}; there are {list(TASKS)}", param_hint="--task")
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    document = SUITES[suite](console, items, task or list(TASKS))
    if json_file is not None:
        partial = json_file.with_name(json_file.name + ".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"schema": SCHEMA, "environment": environment(), **document}, indent=1) + "\n")
        os.replace(partial, json_file)


def reasoning() -> TinyDLM:
    model = load("reasoning")
    assert isinstance(model, TinyDLM)
    return model


def _policies(console: Console, items: int, tasks: list[str]) -> dict[str, Any]:
    model = reasoning()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress, torch.inference_mode():
        bar = progress.add_task("answering", total=policy_suite.steps(model, items, tasks))
        document = policy_suite.run(model, items, tasks, advance=lambda: progress.advance(bar), show=console.print)
    for goal, settings in document["goals"].items():
        console.print(f"\n{goal} forwards than published, within 1 point:", highlight=False)
        for name, where in list(settings.items())[:5]:
            console.print(f"  {name}: {len(where)} tasks, {', '.join(where)}", highlight=False, markup=False)
        if not settings:
            console.print("  none")
    return document


def _ragged(console: Console, items: int, tasks: list[str]) -> dict[str, Any]:
    with torch.inference_mode():
        document = ragged_suite.run(reasoning())
    console.print(ragged_suite.table_of(document))
    return document


SUITES: dict[Suite, Callable[[Console, int, list[str]], dict[str, Any]]] = {
    Suite.policies: _policies,
    Suite.ragged: _ragged,
}
