"""The terminal side: answers appearing step by step, and the tables."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from torch import Tensor

from dlm_benches.demo.methods import NEW_TOKENS
from dlm_benches.tiny import vocab
from dlm_benches.tiny.model import TinyDLM
from dlm_benches.tiny.tasks import Item
from dlm_samplers import EndOfText, LLaDASampler, Policy

FRAME_SECONDS = 0.12


def watch(model: TinyDLM, policy: Policy, item: Item, check: Callable[..., bool], console: Console) -> list[str]:
    """Shows one question being answered, a frame a forward; returns the frames. Frames are slowed down to be seen."""
    out = LLaDASampler(model, policy=policy, stopping=[EndOfText()]).generate(
        [item.prompt], max_new_tokens=NEW_TOKENS, block_length=NEW_TOKENS, return_history=True
    )
    frames = [_canvas(canvas[0, len(item.prompt) :]) for canvas in out.history]
    prompt = vocab.decode(item.prompt)
    verdict = "right" if check(item.prompt, out.completions[0].tolist()) else "wrong"
    if console.is_terminal:
        with Live(console=console, refresh_per_second=20) as live:
            for number, frame in enumerate(frames):
                live.update(Text.assemble((f"{prompt:>20} ", "bold"), frame, (f"  {number} forwards", "dim")))
                time.sleep(FRAME_SECONDS)
            live.update(
                Text.assemble(
                    (f"{prompt:>20} ", "bold"), frames[-1], (f"  {len(frames) - 1} forwards, {verdict}", "dim")
                )
            )
    else:
        for number, frame in enumerate(frames):
            console.print(f"{prompt:>20} {frame}  {number} forwards", markup=False, highlight=False)
    return frames


def _canvas(row: Tensor) -> str:
    """The generated region, masks as a middle dot, nothing after the end of text."""
    text = vocab.decode(row.tolist(), trim=False).replace(vocab.SYMBOLS[vocab.MASK], "·")
    return text.rstrip(vocab.SYMBOLS[vocab.EOS])


def task_table(result: dict[str, Any]) -> Table:
    """The methods of one task."""
    table = Table(title=f"{result['task']}  (n = {next(iter(result['methods'].values()))['n']})", title_justify="left")
    for column in (
        "method",
        "accuracy %",
        "95 % interval",
        "forwards",
        "tokens/forward",
        "tokens/s",
        "wall x",
        "ms alone",
    ):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for name, row in result["methods"].items():
        low, high = row["interval_95"]
        style = "bold green" if name == result["picked"] else None
        table.add_row(
            name,
            f"{100 * row['accuracy']:.1f}",
            f"{100 * low:.1f} - {100 * high:.1f}",
            f"{row['forwards']:.2f}",
            f"{row['tokens_per_forward']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['wall_ratio']:.1f}",
            f"{row['latency_ms_batch_1']:.1f}",
            style=style,
        )
    return table


def verdict_lines(document: dict[str, Any]) -> list[str]:
    """The demo in a few sentences."""
    overall = document["overall"]
    good = overall["tasks_within_1_point_at_8_times_fewer_forwards"]
    lines = [
        f"Within 1 point of one token a forward at 8 or more times fewer forwards than the published sampler on "
        f"{len(good)} of {len(document['tasks'])} tasks: {', '.join(good) or 'none'}.",
        f"Wall time with the setting picked per task: {overall['wall_ratio_to_published']:.1f} times less than the published "
        f"sampler, which fills the whole generation length; {overall['wall_ratio_to_end_of_text_stop']:.1f} times less than "
        f"the same sampler with a stop at the end of the text.",
    ]
    names = [m["name"] for m in document["methods"]]
    one = next(m["name"] for m in document["methods"] if m["kind"] == "one")
    widest = max((name for name in names if name.startswith("fixed ")), key=lambda name: int(name.split()[1]))
    for result in document["tasks"]:
        if result["task"] in ("sudoku", "shuffle"):
            before, after = (100 * result["methods"][m]["accuracy"] for m in (one, widest))
            kept = 100 * result["methods"][result["picked"]]["accuracy"]
            lines.append(
                f"The parallel decoding curse on {result['task']}: {widest} scores {after:.1f} % instead of {before:.1f} %, "
                f"since tokens drawn together ignore each other; {result['picked']} keeps {kept:.1f} %."
            )
    same = sum(r["methods"][one]["same_answer_as_published"] for r in document["tasks"])
    n = sum(r["methods"][one]["n"] for r in document["tasks"])
    lines.append(f"Ours at one token a forward gives the published sampler's answer on {same} of {n} questions.")
    return lines
