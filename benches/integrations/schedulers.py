"""A step of diffusers' schedulers for discrete diffusion, fused against the original: `dlm-bench schedulers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from dlm_benches.environment import environment, write_json
from dlm_benches.kernels.cases import DTYPES, make_logits
from dlm_benches.kernels.report import console
from dlm_benches.kernels.timing import memory, timed
from dlm_benches.stats import quantile

SCHEMA = "dlm-bench/schedulers/1"
ROUNDS = 9
LLADA2, GEMMA = (8, 32, 151936), (1, 256, 262144)  # batch, block, vocabulary


@dataclass(frozen=True)
class Case:
    """One call of one scheduler; `method` is `step`, or the corrector's."""

    scheduler: str
    shape: tuple[int, int, int]
    dtype: str = "fp32"
    config: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    method: str = "step"
    drawn: bool = True  # the two draw differently; what does not depend on it is compared

    def title(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in {**self.config, **self.call}.items())
        return f"{self.scheduler}.{self.method}({settings}), {list(self.shape)}, {self.dtype}"


def cases(llada2: tuple[int, int, int] = LLADA2, gemma: tuple[int, int, int] = GEMMA) -> list[Case]:
    """A block of LLaDA2 in a batch of eight, and a canvas of DiffusionGemma."""
    found = []
    for dtype in ("fp32", "bf16"):
        masked = {"mask_token_id": llada2[2] - 1, "threshold": 0.9}
        found += [
            Case("BlockRefinementScheduler", llada2, dtype, call=masked, drawn=False),
            Case("BlockRefinementScheduler", llada2, dtype, call={**masked, "temperature": 0.7}),
            Case("BlockRefinementScheduler", llada2, dtype, call={**masked, "temperature": 0.7, "top_p": 0.9}),
            Case("BlockRefinementScheduler", gemma, dtype),
            Case("EntropyBoundScheduler", gemma, dtype),
            Case("DiscreteDDIMScheduler", gemma, dtype),
            Case("DiscreteDDIMScheduler", gemma, dtype, call={"temperature": 0.7}),
            Case("DiscreteDDIMScheduler", gemma, dtype, {"corrector_k": 8}, method="step_correct"),
        ]
    return found


def build(case: Case) -> dict[str, Callable[[], Any]]:
    """{"fused": call, "diffusers": call} on the same inputs, in the first half of the block."""
    import diffusers

    from dlm_samplers.integrations import diffusers as fused

    logits = make_logits(case.shape, DTYPES[case.dtype], "mixed")
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(case.shape[2] - 1, case.shape[:2], generator=generator)
    if "mask_token_id" in case.call:
        tokens[torch.rand(tokens.shape, generator=generator) < 0.7] = case.call["mask_token_id"]
    original = getattr(diffusers, case.scheduler)(**case.config)
    ways = {"fused": getattr(fused, "Fused" + case.scheduler).from_config(original.config), "diffusers": original}
    for scheduler in ways.values():
        scheduler.set_timesteps(16)

    def call(scheduler: Any) -> Callable[[], Any]:
        # Step 0, where the state of the uniform mode starts anew with every call.
        return lambda: getattr(scheduler, case.method)(logits, 0, tokens, **case.call)

    return {name: call(scheduler) for name, scheduler in ways.items()}


def check(case: Case, ways: Mapping[str, Callable[[], Any]]) -> None:
    """Tokens and flags equal where nothing is drawn; the returned logits equal in any case."""
    ours, theirs = ways["fused"](), ways["diffusers"]()
    for name, value in theirs.items():
        if name != "pred_logits" and case.drawn:
            continue
        if name == "sampled_probs":
            # The original sums the vocabulary in fp32, one after the other: 1e-4 at 150,000 tokens.
            torch.testing.assert_close(ours[name], value, rtol=5e-4, atol=1e-9)
        else:
            assert torch.equal(ours[name], value), f"{case.title()}: {name} differs"


def run(
    which: Sequence[Case], rounds: int = ROUNDS, show: Callable[[dict[str, Any]], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Figures of every case, JSON-able; the two take turns. `show` sees each result as it comes."""
    results = []
    with torch.inference_mode():
        for case in which:
            ways = build(case)
            check(case, ways)  # and a first call of each
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    seconds[name].append(timed(way, lambda: None, "wall"))
            ratios = [b / a for a, b in zip(seconds["fused"], seconds["diffusers"], strict=True)]
            results.append(
                {
                    "case": case.title(),
                    "milliseconds": {name: _spread([1e3 * t for t in times]) for name, times in seconds.items()},
                    "times_faster": _spread(ratios),
                    "rounds": rounds,
                    "memory": {name: memory(way, lambda: None) for name, way in ways.items()},
                }
            )
            show(results[-1])
    return results


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": quantile(values, 0.5), "p20": quantile(values, 0.2), "p80": quantile(values, 0.8)}


def table_of(results: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Schedulers of diffusers", title_justify="left")
    for column in (
        "",
        "fused ms",
        "p20 - p80",
        "diffusers ms",
        "p20 - p80",
        "times faster",
        "fused MB",
        "diffusers MB",
    ):
        table.add_column(column, justify="right" if column else "left")
    for result in results:
        row = [result["case"]]
        for name in ("fused", "diffusers"):
            ms = result["milliseconds"][name]
            row += [f"{ms['median']:.1f}", f"{ms['p20']:.1f} - {ms['p80']:.1f}"]
        faster = result["times_faster"]
        row.append(f"{faster['median']:.1f} ({faster['p20']:.1f} - {faster['p80']:.1f})")
        row += [f"{result['memory'][name]['torch_peak_bytes'] / 1e6:.1f}" for name in ("fused", "diffusers")]
        table.add_row(*row)
    return table


def schedulers(
    scheduler: Annotated[list[str] | None, typer.Option(help="Only these; may be repeated.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: torch's.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each.")] = ROUNDS,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Times a step of diffusers' schedulers for discrete diffusion, fused against the original."""
    names = sorted({case.scheduler for case in cases()})
    for name in scheduler or ():
        if name not in names:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(names)}", param_hint="--scheduler")
    try:
        import diffusers  # noqa: F401
    except ImportError:
        raise typer.BadParameter("diffusers is not installed: pip install 'dlm-kernels[hf]'") from None
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = [case for case in cases() if not scheduler or case.scheduler in scheduler]
    results = run(chosen, rounds, show=lambda result: print(result["case"], flush=True))
    console().print(table_of(results))
    if json_file is not None:
        write_json(json_file, {"schema": SCHEMA, "environment": environment(), "results": results})
