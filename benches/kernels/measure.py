"""One case: correctness first, then times and memory of all candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dlm_benches.kernels import continuous, posteriors, rows, scoring, selection, steps
from dlm_benches.kernels.cases import Case, Sizes, Workload, assert_agree, ours_by_backend
from dlm_benches.kernels.timing import Candidate, interleave, memory
from dlm_benches.stats import quantile

FAMILIES = {op: family for family in (scoring, steps, selection, posteriors, continuous, rows) for op in family.OPS}
OPS = tuple(FAMILIES)
READ = "sum, one read"


def all_cases(ops: Sequence[str], sizes: Sizes) -> list[Case]:
    return [case for op in ops for case in FAMILIES[op].cases(op, sizes)]


def run_case(
    case: Case, backends: Sequence[str] | None = None, compile_: bool = True, clock: str = "wall"
) -> dict[str, Any]:
    """Figures of every candidate, JSON-able. Raises AssertionError when one disagrees with the op's specification."""
    work = FAMILIES[case.op].build(case, compile_)
    ours = ours_by_backend(case.op, work.traffic, backends)
    check(case, work, ours)
    candidates: dict[str, Candidate] = {
        label: (lambda backend=backend: work.ours(backend)) for label, backend in ours.items()
    }
    candidates[READ] = lambda: work.read.sum(-1)
    candidates |= {name: rival.run for name, rival in work.rivals.items()}
    times = interleave(candidates, work.restore, clock=clock)
    peaks = {name: memory(candidate, work.restore) for name, candidate in candidates.items()}
    work.restore()
    return {
        "op": case.op,
        "shape": dict(case.shape),
        "dtype": case.dtype,
        "inputs": case.inputs,
        "settings": case.settings,
        "traffic": work.traffic._asdict(),
        "bytes_of_one_read": work.read.numel() * work.read.element_size(),
        "backends": ours,
        "notes": work.notes,
        "candidates": {name: figures(times, name, next(iter(ours)), work) | peaks[name] for name in candidates},
    }


def check(case: Case, work: Workload, ours: dict[str, str]) -> None:
    """Every backend against the reference, and every rival that draws nothing against ours."""
    part = work.checked or work.ours
    truth = work.result(lambda: part("reference"))
    for label, backend in ours.items():
        result = work.result(lambda backend=backend: part(backend))
        _agree(f"{case.title()}: {label}", lambda result=result: assert_agree(result, truth))
    comparable = {name: rival for name, rival in work.rivals.items() if rival.agrees is not None}
    result = work.result(lambda: work.ours(next(iter(ours.values())))) if comparable else ()
    for name, rival in comparable.items():
        theirs = work.result(rival.run)
        _agree(f"{case.title()}: {name}", lambda theirs=theirs, rival=rival: rival.agrees(result, theirs))
    work.restore()


def _agree(what: str, check: Candidate) -> None:
    try:
        check()
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None


def figures(times: dict[str, list[float]], name: str, ours: str, work: Workload) -> dict[str, Any]:
    """Times of one candidate, its bandwidth beside the measured one, and its time over ours in the same rounds."""
    seconds = times[name]
    median = quantile(seconds, 0.5)
    ratios = [a / b for a, b in zip(seconds, times[ours], strict=False)]  # a slow one has fewer rounds
    read = work.read.numel() * work.read.element_size()
    per_second = (read if name == READ else work.traffic.bytes) / median
    return {
        "median_ms": 1e3 * median,
        "p20_ms": 1e3 * quantile(seconds, 0.2),
        "p80_ms": 1e3 * quantile(seconds, 0.8),
        "rounds": len(seconds),
        "gb_per_s": per_second / 1e9,
        "percent_of_read_bandwidth": 100 * per_second / (read / quantile(times[READ], 0.5)),
        "times_ours": quantile(ratios, 0.5),
        "times_ours_p20_p80": [quantile(ratios, 0.2), quantile(ratios, 0.8)],
    }


def run(
    cases: Sequence[Case],
    backends: Sequence[str] | None,
    compile_: bool,
    clock: str,
    show: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """The cases one after the other; `show` sees each result as it comes."""
    results = []
    with torch.inference_mode():
        for case in cases:
            results.append(run_case(case, backends, compile_, clock))
            show(results[-1])
    return results
