"""Exact ancestral sampling on the bundled text model: forwards and time without idle steps, against the published loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dlm_benches.kernels.timing import timed
from dlm_benches.samplers.law import distinct_steps, law_differences
from dlm_benches.stats import quantile
from dlm_benches.tiny.load import load
from dlm_samplers import AncestralUnmask, EventDriven, LLaDASampler, ModelSpec, Policy
from dlm_samplers.reference import mdlm_generate

PUBLISHED = "published, cached over the batch"
OURS = "EventDriven, LM head at the event's positions"
NFE_GOAL = 0.02  # of the mean
SPEED_GOAL = 1.5
LAW_GOAL = 1e-12


@dataclass(frozen=True)
class Candidate:
    """A sampler: seed -> (canvases int64 [B, L], forwards of each row int64 [B])."""

    name: str
    run: Callable[[int], tuple[Tensor, Tensor]]


def candidates(model: Any, batch: int, length: int, steps: int) -> list[Candidate]:
    """The published loop and ours, T steps at temperature 1 over one block."""
    mask = model.config.mask_token_id

    def published(seed: int) -> tuple[Tensor, Tensor]:
        calls = 0

        def counted(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return model(x).logits

        generator = torch.Generator().manual_seed(seed)
        out = mdlm_generate(
            counted,
            torch.full((batch, length), mask),
            steps=steps,
            mask_id=mask,
            noise_removal=False,
            uniform=lambda step, shape: torch.rand(shape, generator=generator),
        )
        return out, torch.full((batch,), calls)

    def ours(policy: Policy, spec: ModelSpec | None = None, **settings: Any) -> Callable[[int], tuple[Tensor, Tensor]]:
        sampler = LLaDASampler(model, policy=policy, spec=spec)
        empty = torch.zeros(batch, 0, dtype=torch.int64)
        common: dict[str, Any] = {"max_new_tokens": length, "block_length": None, "temperature": 1.0, **settings}

        def run(seed: int) -> tuple[Tensor, Tensor]:
            out = sampler.generate(empty, seed=seed, **common)
            return out.sequences, out.nfe

        return run

    lean = ModelSpec.of(model, hidden="hidden", lm_head="lm_head")
    return [
        Candidate(PUBLISHED, published),
        Candidate("AncestralUnmask, cached per row", ours(AncestralUnmask(), steps=steps)),
        Candidate("EventDriven", ours(EventDriven(steps))),
        Candidate(OURS, ours(EventDriven(steps), lean)),
    ]


@torch.inference_mode()
def measure(
    batch: int = 16, length: int = 256, steps: int = 256, rounds: int = 5, clock: str = "wall", seed: int = 0
) -> dict[str, Any]:
    """Times the candidates in turn, with another seed in every round, and enumerates the law of the event-driven sampler.

    Returns a JSON-able document: sizes, expected mean forwards, a row a candidate, the law's differences, the goals.
    """
    model = load("text")
    runs = candidates(model, batch, length, steps)
    for warm_up in candidates(model, batch, length, 2):
        warm_up.run(seed)
    seconds: dict[str, list[float]] = {run.name: [] for run in runs}
    forwards: dict[str, list[Tensor]] = {run.name: [] for run in runs}
    for round_ in range(rounds):
        for run in runs:

            def once(run: Candidate = run, seed: int = seed + round_) -> None:
                forwards[run.name].append(run.run(seed)[1])

            seconds[run.name].append(timed(once, lambda: None, clock))
    expected = distinct_steps(steps, length)
    rows = {run.name: _figures(seconds[run.name], seconds[PUBLISHED], torch.cat(forwards[run.name])) for run in runs}
    laws = law_differences()
    worst = max(law["difference"] for law in laws)
    nfe_off = rows[OURS]["nfe_mean"] / expected - 1
    return {
        "batch": batch,
        "length": length,
        "steps": steps,
        "rounds": rounds,
        "clock": clock,
        "threads": torch.get_num_threads(),
        "expected_nfe": expected,
        "candidates": rows,
        "laws": laws,
        "goals": [
            _goal(
                f"mean forwards a row within {NFE_GOAL:.0%} of T(1 - (1 - 1/T)^L)", nfe_off, abs(nfe_off) <= NFE_GOAL
            ),
            _goal(
                f"at least {SPEED_GOAL}x the published loop",
                rows[OURS]["speed_up"],
                rows[OURS]["speed_up"] >= SPEED_GOAL,
            ),
            _goal(f"law by enumeration within {LAW_GOAL:g} of the definition", worst, worst <= LAW_GOAL),
        ],
    }


def _figures(seconds: list[float], baseline: list[float], forwards: Tensor) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(baseline, seconds, strict=True)]
    return {
        "nfe_mean": float(forwards.double().mean()),
        "nfe_standard_error": float(forwards.double().std() / len(forwards) ** 0.5),
        "median_s": quantile(seconds, 0.5),
        "p20_s": quantile(seconds, 0.2),
        "p80_s": quantile(seconds, 0.8),
        "speed_up": quantile(ratios, 0.5),
        "speed_up_p20_p80": [quantile(ratios, 0.2), quantile(ratios, 0.8)],
    }


def _goal(what: str, value: float, met: bool) -> dict[str, Any]:
    return {"goal": what, "value": value, "met": met}


def show(document: dict[str, Any], console: Console) -> None:
    """Prints what `measure` returns."""
    table = Table(
        title=f"Text model, L = {document['length']}, T = {document['steps']}, batch {document['batch']}, temperature 1; "
        f"{document['threads']} threads, {document['clock']} time, {document['rounds']} rounds in turn",
        title_justify="left",
        caption=f"Expected forwards a row: T(1 - (1 - 1/T)^L) = {document['expected_nfe']:.2f}",
        caption_justify="left",
    )
    for column in ("", "forwards a row", "median s", "p20 - p80", "speed-up (p20 - p80)"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, row in document["candidates"].items():
        low, high = row["speed_up_p20_p80"]
        table.add_row(
            name,
            f"{row['nfe_mean']:.2f} ± {row['nfe_standard_error']:.2f}",
            f"{row['median_s']:.2f}",
            f"{row['p20_s']:.2f} - {row['p80_s']:.2f}",
            f"{row['speed_up']:.2f} ({low:.2f} - {high:.2f})",
        )
    console.print(table)
    for law in document["laws"]:
        block = "" if law["block_length"] is None else f" in blocks of {law['block_length']}"
        console.print(
            f"V = {law['vocabulary']}, L = {law['length']}: {law['policy']} against {law['definition']}{block}, "
            f"{law['paths']:,} paths: greatest difference of probability {law['difference']:.1e}",
            highlight=False,
        )
    for goal in document["goals"]:
        console.print(
            f"{'met' if goal['met'] else 'NOT MET'}: {goal['goal']} ({goal['value']:.3g})",
            highlight=False,
            markup=False,
        )
