"""The command `dlm-bench samplers`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dlm_benches.environment import environment, write_json
from dlm_benches.samplers import caches as cache_suite
from dlm_benches.samplers import drafts as draft_suite
from dlm_benches.samplers import events as event_suite
from dlm_benches.samplers import oracle as oracle_suite
from dlm_benches.samplers import policies as policy_suite
from dlm_benches.samplers import ragged as ragged_suite
from dlm_benches.tiny.load import load
from dlm_benches.tiny.model import TinyDLM
from dlm_benches.tiny.tasks import TASKS

SCHEMA = "dlm-bench/samplers/1"
WIDTH = 180  # of tables in a log file, which has none of its own


class Suite(str, Enum):
    """What `--suite` takes."""

    policies = "policies"
    drafts = "drafts"
    events = "events"
    ragged = "ragged"
    oracle = "oracle"
    caches = "caches"


def samplers(
    suite: Annotated[
        Suite,
        typer.Option(
            help="policies: every policy on every task. drafts: draft and verify. events: exact ancestral sampling. "
            "ragged: a batch that refills. oracle: sampler error without a network. caches: what they save and change."
        ),
    ] = Suite.policies,
    items: Annotated[int, typer.Option(min=1, help="Questions a task (policies, drafts, caches).")] = 1000,
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks; may be repeated.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the picture of --suite oracle here.")] = None,
) -> None:
    """Quality, forwards and time of samplers on the bundled models, with what each of them preserves."""
    unknown = sorted(set(task or ()) - set(TASKS))
    if unknown:
        raise typer.BadParameter(f"unknown {unknown}; there are {list(TASKS)}", param_hint="--task")
    if picture is not None and suite is not Suite.oracle:
        raise typer.BadParameter("goes with --suite oracle", param_hint="--picture")
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    tasks = task or list(TASKS)
    with torch.inference_mode():
        if suite is Suite.policies:
            document = _with_progress(console, policy_suite, items, tasks)
            _print_goals(console, document)
        elif suite is Suite.drafts:
            document = _with_progress(console, draft_suite, items, tasks)
            console.print(draft_suite.table_of(document["overall"]))
        elif suite is Suite.caches:
            document = _with_progress(console, cache_suite, items, tasks)
        elif suite is Suite.events:
            document = {"suite": "events", **event_suite.measure()}
            event_suite.show(document, console)
        elif suite is Suite.ragged:
            document = ragged_suite.run(_reasoning())
            console.print(ragged_suite.table_of(document))
        else:
            document = {"suite": "oracle", "errors": oracle_suite.transition_errors()}
            console.print(oracle_suite.table_of(document["errors"]))
            if picture is not None:
                oracle_suite.plot(document["errors"], picture)
    if json_file is not None:
        write_json(json_file, {"schema": SCHEMA, "environment": environment(), **document})


def _reasoning() -> TinyDLM:
    model = load("reasoning")
    assert isinstance(model, TinyDLM)
    return model


def _with_progress(console: Console, suite: ModuleType, items: int, tasks: list[str]) -> dict[str, Any]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("answering", total=suite.steps(items, tasks))
        return suite.run(_reasoning(), items, tasks, advance=lambda: progress.advance(bar), show=console.print)


def _print_goals(console: Console, document: dict[str, Any]) -> None:
    for goal, settings in document["goals"].items():
        console.print(f"\n{goal} forwards than published, within 1 point:", highlight=False)
        for name, where in list(settings.items())[:5]:
            console.print(f"  {name}: {len(where)} tasks, {', '.join(where)}", highlight=False, markup=False)
        if not settings:
            console.print("  none")
