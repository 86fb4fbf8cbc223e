"""The HTML page: one self-contained file."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from dlm_benches.demo.show import verdict_lines
from dlm_benches.samplers.oracle import plot

COLOURS = {
    "published": "#444444",
    "one": "#888888",
    "fixed": "#d1495b",
    "threshold": "#00798c",
    "factor": "#30638e",
    "entropy": "#8d6a9f",
    "ar": "#edae49",
}


def frontier(document: dict[str, Any]) -> bytes:
    """PNG: accuracy with its 95 % interval over forwards an answer, one panel per task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    tasks = document["tasks"]
    kinds = {m["name"]: m["kind"] for m in document["methods"]}
    columns = 4
    figure, axes = plt.subplots(
        -(-len(tasks) // columns), columns, figsize=(15, 3.4 * -(-len(tasks) // columns)), squeeze=False
    )
    for axis, result in zip(axes.flat, tasks, strict=False):
        for kind, colour in COLOURS.items():
            rows = [row for name, row in result["methods"].items() if kinds[name] == kind]
            rows.sort(key=lambda row: row["forwards"])
            x = [row["forwards"] for row in rows]
            y = [100 * row["accuracy"] for row in rows]
            error = [
                [100 * max(row["accuracy"] - row["interval_95"][0], 0) for row in rows],
                [100 * max(row["interval_95"][1] - row["accuracy"], 0) for row in rows],
            ]
            axis.errorbar(x, y, yerr=error, color=colour, marker="o", markersize=4, linewidth=1, capsize=2, label=kind)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.set_xlim(0.8, 45)
        axis.set_ylim(-3, 103)
        axis.set_title(result["task"])
        axis.set_xlabel("forwards per answer")
        axis.set_ylabel("exact accuracy, %")
        axis.grid(alpha=0.25)
    for axis in list(axes.flat)[len(tasks) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    (axes.flat[-1] if len(tasks) < axes.size else axes.flat[0]).legend(handles, labels, loc="center", frameon=False)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def write_html(document: dict[str, Any], frames: dict[str, list[str]], path: Path) -> None:
    """Renders the page; `frames` holds the canvases of one answered question per task."""
    pages = Environment(loader=PackageLoader("dlm_benches", "templates"), autoescape=select_autoescape(default=True))
    oracle = io.BytesIO()
    plot(document["oracle"], oracle)
    pictures = {
        name: base64.b64encode(png).decode()
        for name, png in (("frontier", frontier(document)), ("oracle", oracle.getvalue()))
    }
    html = pages.get_template("demo.html.j2").render(
        document=document, verdict=verdict_lines(document), frames=frames, pictures=pictures
    )
    path.write_text(html, encoding="utf-8")
