"""Prints results and writes them: the document of `dlm-bench kernels --json` and its schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dlm_benches.environment import environment, write_json
from dlm_benches.kernels.cases import title

SCHEMA = "dlm-bench/kernels/2"  # raised whenever a reader of the old one would misread the new
WIDTH = 150  # of tables in a log file, which has none of its own


def console() -> Console:
    out = Console()
    return out if out.is_terminal else Console(width=WIDTH)


def table_of(result: dict[str, Any]) -> Table:
    first = next(iter(result["backends"]))
    notes = [f"{result['traffic']['read'] + result['traffic']['written']:,} bytes"]
    notes += [f"{first} ran on {result['backends'][first]}"]
    notes += [f"{name}: {note}" for name, note in result["notes"].items() if name != "compiled_form"]
    table = Table(title=title(result), title_justify="left", caption=escape("; ".join(notes)), caption_justify="left")
    columns = ("", "median ms", "p20 - p80", "GB/s", "% of one read", "x ours (p20 - p80)", "torch MB", "resident MB")
    for column in columns:
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, row in result["candidates"].items():
        low, high = row["times_ours_p20_p80"]
        form = result["notes"].get("compiled_form") if name == "torch.compile" else None
        table.add_row(
            escape(f"{name}: {form}" if form else name),
            _number(row["median_ms"]),
            f"{_number(row['p20_ms'])} - {_number(row['p80_ms'])}",
            f"{row['gb_per_s']:.1f}",
            f"{row['percent_of_read_bandwidth']:.0f}",
            f"{row['times_ours']:.2f} ({low:.2f} - {high:.2f})",
            _megabytes(row["torch_peak_bytes"]),
            _megabytes(row["resident_peak_bytes"]),
            style="bold" if name in result["backends"] else None,
        )
    return table


def _number(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds >= 1 else f"{milliseconds:.4f}"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.2f}"


def write(path: Path, results: list[dict[str, Any]], clock: str) -> None:
    """Whole or not at all."""
    document = {"schema": SCHEMA, "environment": {**environment(), "clock": clock}, "results": results}
    write_json(path, document)


def load(path: Path) -> dict[str, Any]:
    """Raises ValueError for a file that is not such a document, or one of another schema."""
    try:
        document = json.loads(path.read_text())
        schema = document["schema"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result of `dlm-bench kernels --json`: {error!r}") from error
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema!r}; this version reads {SCHEMA!r}")
    return document
