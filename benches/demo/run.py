"""Puts the demo together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dlm_benches.demo import measure as ms
from dlm_benches.demo.methods import all_methods
from dlm_benches.demo.report import write_html
from dlm_benches.demo.show import task_table, verdict_lines, watch
from dlm_benches.environment import environment, write_json
from dlm_benches.samplers.oracle import transition_errors
from dlm_benches.tiny.load import load, read_recipe
from dlm_benches.tiny.model import TinyAR, TinyDLM
from dlm_benches.tiny.tasks import TASKS
from dlm_samplers import Threshold

LATENCY_ITEMS = 5
ORACLE_ROWS = 400
"""Chains a sampler, for its error against a model whose every posterior is known."""
TABLE_WIDTH = 120


def run_demo(n: int, out_dir: Path, tasks: list[str] | None = None, console: Console | None = None) -> dict[str, Any]:
    """Runs the demo with n questions a task; writes demo.json and report.html into `out_dir`; returns the document.

    Raises ValueError for an unknown task.
    """
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)  # a log file has no width of its own
    unknown = sorted(set(tasks or ()) - set(TASKS))
    if unknown:
        raise ValueError(f"tasks: unknown {unknown}; there are {list(TASKS)}")
    chosen = [task for name, task in TASKS.items() if tasks is None or name in tasks]
    dlm, ar = load("reasoning"), load("reasoning-ar")
    assert isinstance(dlm, TinyDLM)
    assert isinstance(ar, TinyAR)
    methods = all_methods(dlm, ar)
    out_dir.mkdir(parents=True, exist_ok=True)

    console.print("A few answers as they appear: each line is one forward, a dot is a masked token.\n")
    frames: dict[str, list[str]] = {}
    for task in chosen:
        item = task.sample(np.random.default_rng(0), 1, "test")[0]
        frames[task.name] = watch(dlm, Threshold(0.9), item, task.check, console)
    console.print()

    results = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress, torch.inference_mode():
        bar = progress.add_task("measuring", total=len(chosen) * ms.steps(methods, n))
        for task in chosen:
            progress.update(bar, description=f"{task.name:>10}")
            results.append(
                ms.measure(task, methods, n, latency_items=LATENCY_ITEMS, advance=lambda: progress.advance(bar))
            )
            console.print(task_table(results[-1].summary()))

        progress.update(bar, description="oracle")
        errors = transition_errors(ORACLE_ROWS)

    models = {name: read_recipe(name) for name in ("reasoning", "reasoning-ar")}
    models["reasoning"]["parameters"] = sum(p.numel() for p in dlm.parameters())
    document = {**ms.document(results, methods, environment(), models), "oracle": errors}
    write_json(out_dir / "demo.json", document)
    write_html(document, frames, out_dir / "report.html")
    for line in verdict_lines(document):
        console.print(line, highlight=False)
    console.print(f"\n{out_dir / 'report.html'} has the picture, {out_dir / 'demo.json'} the numbers.", highlight=False)
    return document
