"""The `dlm-bench` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlm_benches.integrations.diffusion_gemma import diffusion_gemma
from dlm_benches.integrations.pipelines import pipelines
from dlm_benches.integrations.schedulers import schedulers
from dlm_benches.kernels.command import compare, kernels
from dlm_benches.resources import resources
from dlm_benches.samplers.command import samplers

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Demonstrations, training and benchmarks of dlm-kernels."
)
app.command()(kernels)
app.command()(compare)
app.command()(pipelines)
app.command()(resources)
app.command()(samplers)
app.command()(schedulers)
app.command()(diffusion_gemma)


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
def roofline(
    out: Annotated[Path | None, typer.Option(help="Write the page here instead of printing it.")] = None,
) -> None:
    """Bytes, operations and expected times of every op on current GPUs: computed, not measured."""
    from dlm_benches.roofline import markdown

    if out is None:
        print(markdown())
    else:
        out.write_text(markdown())


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


@app.command()
def gpu_check(
    out: Annotated[Path, typer.Option(help="Folder for gpu_<name>.json.")] = Path("benches/results"),
    tests: Annotated[bool, typer.Option(help="Run the tests before anything is timed.")] = True,
) -> None:
    """Op tests, CUDA graphs, compute-sanitizer and times on a GPU; skipped where there is none."""
    from dlm_benches.gpu_check import check

    if not check(out, tests):
        raise typer.Exit(1)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
