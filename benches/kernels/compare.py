"""`dlm-bench compare`: what changed between two results of `dlm-bench kernels --json`.

A time changed if the intervals from the 20th to the 80th percentile do not overlap. With a few hundred candidates that still
happens by chance on a machine that others use, so a change that matters is worth a second measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from dlm_benches.kernels.cases import title
from dlm_benches.kernels.report import load

ENVIRONMENT = ("cpu", "instruction_set", "cores", "threads", "clock", "gpu", "python", "versions")


class Change(NamedTuple):
    case: str
    candidate: str
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def factor(self) -> float:
        """New time over old."""
        return self.after["median_ms"] / self.before["median_ms"]


class Comparison(NamedTuple):
    changes: list[Change]  # slowest first
    same: int  # measured in both, intervals overlap
    only_before: list[tuple[str, str]]
    only_after: list[tuple[str, str]]
    environment: list[str]  # what differs between the machines


def compare(before: dict[str, Any], after: dict[str, Any]) -> Comparison:
    """Of two documents."""
    old, new = dict(_timed(before)), dict(_timed(after))
    both = [key for key in old if key in new]
    changes = [Change(*key, old[key], new[key]) for key in both if not _overlap(old[key], new[key])]
    return Comparison(
        sorted(changes, key=lambda change: -change.factor),
        len(both) - len(changes),
        [key for key in old if key not in new],
        [key for key in new if key not in old],
        [
            f"{name}: {before['environment'].get(name)} -> {after['environment'].get(name)}"
            for name in ENVIRONMENT
            if before["environment"].get(name) != after["environment"].get(name)
        ],
    )


def _timed(document: dict[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    for result in document["results"]:
        for name, figures in result["candidates"].items():
            yield (title(result), name), figures


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["p20_ms"] <= b["p80_ms"] and b["p20_ms"] <= a["p80_ms"]


def table_of(comparison: Comparison) -> Table:
    table = Table(title="changed", title_justify="left")
    for column in ("case", "candidate", "before, ms (p20 - p80)", "after, ms (p20 - p80)", "after / before"):
        table.add_column(column, justify="right" if "ms" in column or "/" in column else "left", overflow="fold")
    for change in comparison.changes:
        table.add_row(
            change.case,
            escape(change.candidate),
            _interval(change.before),
            _interval(change.after),
            f"{change.factor:.2f}",
        )
    return table


def _interval(figures: dict[str, Any]) -> str:
    return "{median_ms:.4g} ({p20_ms:.4g} - {p80_ms:.4g})".format(**figures)


def compare_files(before: Path, after: Path) -> Comparison:
    """Raises ValueError for files that are no such results."""
    return compare(load(before), load(after))
