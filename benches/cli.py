"""The `dlm-bench` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlm_benches.kernels import kernels
from dlm_benches.resources import resources

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Demonstrations, training and benchmarks of dlm-kernels."
)
app.command()(kernels)
app.command()(resources)


@app.command()
def demo(
    full: Annotated[bool, typer.Option(help="1,000 questions a task instead of 300.")] = False,
    n: Annotated[int | None, typer.Option(min=1, help="Questions a task.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html and demo.json.")] = Path("demo-out"),
) -> None:
    """The published sampler and ours on the bundled models: accuracy, forwards, time, one picture."""
    from dlm_benches.demo.run import run_demo

    try:
        run_demo(n or (1000 if full else 300), out, task)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="reasoning, reasoning-ar or text")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and weights.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; default: the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the recipe's.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last checkpoint in --out.")] = False,
) -> None:
    """Trains one of the bundled models from scratch. Takes up to an hour on two cores; resumable."""
    from dlm_benches.tiny.train import train as run

    try:
        run(name, out, steps=steps, seed=seed, resume=resume)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def main() -> None:
    app()


if __name__ == "__main__":
    main()
