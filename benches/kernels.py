"""`dlm-bench kernels`: an op against the ways people compute it today, and against reading the logits once.

Correctness first: no time is reported for a kernel that disagrees with the reference. All candidates run interleaved in one
process, so that the noise of the machine meets them alike; figures are medians with their 20th and 80th percentile.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dlm_benches.environment import environment
from dlm_benches.stats import quantile
from dlm_kernels import score_tokens

SECONDS_PER_CASE = 8.0
FEWEST_ROUNDS, MOST_ROUNDS = 3, 25
COMPILE_ROWS = 32  # rows with which the forms of torch.compile are compared to find the best one
OURS, EAGER, CHAIN, COMPILED, READ = (
    "score_tokens",
    "eager softmax + max",
    "LLaDA chain, fp64",
    "torch.compile",
    "sum, one read",
)


class Op(str, Enum):
    score_tokens = "score_tokens"


class Dtype(str, Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


DTYPES = {Dtype.fp32: torch.float32, Dtype.bf16: torch.bfloat16, Dtype.fp16: torch.float16}

Candidate = Callable[[Tensor], Any]


def eager(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and index of the best token through a softmax of the whole vocabulary, in fp32."""
    confidence, token = logits.float().softmax(-1).max(-1)
    return token, confidence


def llada_chain(logits: Tensor) -> tuple[Tensor, Tensor]:
    """What LLaDA's sampler does a step at temperature 0, with the fp64 softmax that its successors use."""
    token = logits.argmax(-1)
    probabilities = logits.to(torch.float64).softmax(-1)
    return token, probabilities.gather(-1, token[:, None])[:, 0]


def by_logsumexp(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Two reductions and no softmax."""
    x = logits.float()
    highest, token = x.max(-1)
    return token, (highest - x.logsumexp(-1)).exp()


def by_sum_of_exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    x = logits.float()
    highest = x.amax(-1, keepdim=True)
    return x.argmax(-1), 1 / (x - highest).exp().sum(-1)


FORMS = {"softmax + max": eager, "max + logsumexp": by_logsumexp, "amax + argmax + sum of exp": by_sum_of_exponentials}


@dataclass(frozen=True)
class Case:
    """One shape, dtype and kind of logits."""

    rows: int
    vocab: int
    dtype: Dtype
    logits: str  # "gaussian" or "peaked"
    settings: str = "greedy"

    def bytes_read(self) -> int:
        return self.rows * self.vocab * DTYPES[self.dtype].itemsize


def make_logits(case: Case, seed: int = 0) -> Tensor:
    """[R, V]: standard normal, or the same with one entry a row 40 above the rest, as a trained model's are peaked."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(case.rows, case.vocab, generator=generator)
    if case.logits == "peaked":
        winner = torch.randint(case.vocab, (case.rows,), generator=generator)
        logits[torch.arange(case.rows), winner] += 40
    return logits.to(DTYPES[case.dtype])


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "T=1": {"temperature": 1.0},
    "T=1, top-p 0.95": {"temperature": 1.0, "top_p": 0.95},
    "T=1, top-k 50": {"temperature": 1.0, "top_k": 50},
}


def check(case: Case, logits: Tensor) -> None:
    """Raises AssertionError when the kernel disagrees with the reference backend on a few of the rows."""
    rows = logits[:4]
    ours = score_tokens(rows, **SETTINGS[case.settings])
    truth = score_tokens(rows, backend="reference", **SETTINGS[case.settings])
    assert torch.equal(ours.token, truth.token), f"{case}: tokens differ from the reference"
    for name, a, b in zip(ours._fields[1:], ours[1:], truth[1:], strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), f"{case}: {name} differs from the reference"


def best_compiled(vocab: int, dtype: Dtype) -> tuple[str, Candidate] | None:
    """The fastest of torch.compile's renderings of the eager forms; None, with the reason printed, if it cannot compile."""
    case = Case(COMPILE_ROWS, vocab, dtype, "gaussian")
    logits = make_logits(case)
    compiled: dict[str, Candidate] = {}
    for name, form in FORMS.items():
        try:
            compiled[name] = torch.compile(form, dynamic=True)
            compiled[name](logits)
        except Exception as error:  # inductor needs a compiler and may fail in many ways
            Console(stderr=True).print(f"torch.compile of {name!r} failed: {type(error).__name__}")
            compiled.pop(name, None)
    if not compiled:
        return None
    times = interleave(compiled, logits, seconds=2.0)
    best = min(compiled, key=lambda name: quantile(times[name], 0.5))
    return best, compiled[best]


def interleave(
    candidates: dict[str, Candidate], logits: Tensor, seconds: float = SECONDS_PER_CASE
) -> dict[str, list[float]]:
    """Seconds of every call, the candidates taking turns."""
    for candidate in candidates.values():
        candidate(logits)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    deadline = time.perf_counter() + seconds
    for round_ in range(MOST_ROUNDS):
        if round_ >= FEWEST_ROUNDS and time.perf_counter() > deadline:
            break
        for name, candidate in candidates.items():
            begin = time.perf_counter()
            candidate(logits)
            times[name].append(time.perf_counter() - begin)
    return times


def run_case(case: Case, compiled: tuple[str, Candidate] | None) -> dict[str, Any]:
    """Times of every candidate on one case, JSON-able."""
    logits = make_logits(case)
    check(case, logits)
    settings = SETTINGS[case.settings]
    candidates: dict[str, Candidate] = {OURS: lambda x: score_tokens(x, **settings), READ: lambda x: x.sum(-1)}
    if case.settings == "greedy":
        candidates |= {EAGER: eager, CHAIN: llada_chain}
        if compiled is not None:
            candidates[COMPILED] = compiled[1]
    times = interleave(candidates, logits)
    ours = times[OURS]
    read = quantile(times[READ], 0.5)
    result: dict[str, Any] = {**case.__dict__, "dtype": case.dtype.value, "candidates": {}}
    if COMPILED in times and compiled is not None:
        result["compiled_form"] = compiled[0]
    for name, seconds in times.items():
        median = quantile(seconds, 0.5)
        ratios = [a / b for a, b in zip(seconds, ours, strict=True)]
        result["candidates"][name] = {
            "median_ms": 1e3 * median,
            "p20_ms": 1e3 * quantile(seconds, 0.2),
            "p80_ms": 1e3 * quantile(seconds, 0.8),
            "rounds": len(seconds),
            "gb_per_s": case.bytes_read() / median / 1e9,
            "percent_of_read_bandwidth": 100 * read / median,
            "times_ours": quantile(ratios, 0.5),
            "times_ours_p20_p80": [quantile(ratios, 0.2), quantile(ratios, 0.8)],
        }
    return result


def table_of(result: dict[str, Any]) -> Table:
    title = "R = {rows}, V = {vocab:,}, {dtype}, {logits} logits, {settings}".format(**result)
    table = Table(title=title, title_justify="left")
    for column in ("", "median ms", "p20 - p80", "GB/s", "% of one read", "x ours (p20 - p80)"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, row in result["candidates"].items():
        low, high = row["times_ours_p20_p80"]
        label = f"{name}: {result['compiled_form']}" if name == COMPILED else name
        table.add_row(
            label,
            f"{row['median_ms']:.2f}",
            f"{row['p20_ms']:.2f} - {row['p80_ms']:.2f}",
            f"{row['gb_per_s']:.1f}",
            f"{row['percent_of_read_bandwidth']:.0f}",
            f"{row['times_ours']:.2f} ({low:.2f} - {high:.2f})",
            style="bold" if name == OURS else None,
        )
    return table


def cases(rows: list[int], vocab: list[int], dtype: list[Dtype]) -> list[Case]:
    """Greedy on both kinds of logits for every shape, and sampling on the largest one."""
    listed = [Case(r, v, d, kind) for v in vocab for d in dtype for r in rows for kind in ("peaked", "gaussian")]
    sampled = [
        Case(max(rows), vocab[0], dtype[0], kind, settings)
        for settings in SETTINGS
        if settings != "greedy"
        for kind in ("peaked", "gaussian")
    ]
    return listed + sampled


def kernels(
    op: Annotated[Op, typer.Option(help="The op to time.")] = Op.score_tokens,
    rows: Annotated[list[int] | None, typer.Option(min=1, help="Rows; may be repeated. Default: 32 and 256.")] = None,
    vocab: Annotated[list[int] | None, typer.Option(min=2, help="Vocabulary. Default: 126464 and 151936.")] = None,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Default: fp32 and bf16.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: torch's.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Times an op against eager PyTorch, the LLaDA chain, torch.compile and one read of the logits."""
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console()
    if not console.is_terminal:
        console = Console(width=132)  # a log file has no width of its own
    dtypes, vocabularies = dtype or [Dtype.fp32, Dtype.bf16], vocab or [126464, 151936]
    compiled = {(v, d): best_compiled(v, d) for v in vocabularies for d in dtypes}
    results = []
    with torch.inference_mode():
        for case in cases(rows or [32, 256], vocabularies, dtypes):
            results.append(run_case(case, compiled[case.vocab, case.dtype]))
            console.print(table_of(results[-1]))
    if json_file is not None:
        document = {"schema": "dlm-bench/kernels/1", "op": op.value, "environment": environment(), "results": results}
        partial = json_file.with_name(json_file.name + ".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(document, indent=1))
        os.replace(partial, json_file)


if __name__ == "__main__":
    typer.run(kernels)
