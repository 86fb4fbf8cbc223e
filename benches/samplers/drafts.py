"""Draft and verify: what orders are worth, how many steps a forward makes, what that costs, and whether the tokens agree."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from dlm_benches.demo.measure import BATCH, CALIBRATION_SEED, TEST_SEED, questions
from dlm_benches.demo.methods import NEW_TOKENS
from dlm_benches.stats import quantile, wilson
from dlm_benches.tiny.data_text import TextTokenizer, held_out_prompts
from dlm_benches.tiny.load import MODELS, load
from dlm_benches.tiny.model import TinyDLM
from dlm_benches.tiny.tasks import TASKS, Item, Task
from dlm_kernels import score_tokens
from dlm_samplers import DraftVerify, FixedQuota, FrozenConfidence, LLaDASampler, Policy, SamplerOutput
from dlm_samplers.verify.drafters import places
from dlm_samplers.verify.patterns import Graph

WIDTH = 16
TEMPERATURES = (0.0, 1.0)
WIDTHS_TIMED = (1, 2, 4, 8, 16, "auto")
BATCHES_TIMED = (1, 16)
ROUNDS = 5
GUARD = 1e-3
SEED = 3
TEXT_PROMPTS, TEXT_PROMPT, TEXT_TOKENS = 48, 32, 64


def policies() -> list[Policy]:
    """One commit a step, from the order that asks the model at every step to those that never do."""
    return [
        FixedQuota("confidence", tokens_per_step=1),
        *(FrozenConfidence(every) for every in (4, 8, 16)),
        FixedQuota("left_to_right", tokens_per_step=1),
        FixedQuota("random", tokens_per_step=1),
    ]


def run(
    model: TinyDLM,
    items: int,
    tasks: list[str],
    *,
    advance: Callable[[], None] = lambda: None,
    show: Callable[[Table], None] = lambda _: None,
) -> dict[str, Any]:
    """The document of the suite. `advance` is called `steps(...)` times, `show` with each table as it is ready."""
    rows = []
    for name in tasks:
        asked = questions(TASKS[name], items, TEST_SEED)
        for temperature in TEMPERATURES:
            for policy in policies():
                rows.append(compare(model, TASKS[name], asked, policy, temperature, advance))
        show(table_of([row for row in rows if row["task"] == name]))
    times = time_widths(model, policies()[-1])
    show(table_of_times(times))
    text = on_text(load("text"), text_prompts(TEXT_PROMPTS))
    show(table_of(text))
    sums = {"rows": rows, "overall": overall(rows), "text": text, "times": times}
    return {"suite": "drafts", "batch": BATCH, "width": WIDTH, **sums}


def steps(items: int, tasks: list[str]) -> int:
    return len(tasks) * len(TEMPERATURES) * len(policies()) * -(-items // BATCH)


@dataclass
class Count:
    """Sums over the questions of a task."""

    n: int = 0
    right: int = 0
    same: int = 0
    sequential: int = 0
    verified: int = 0
    canvases: int = 0
    text: int = 0
    unlike: int = 0
    guarded: int = 0


def compare(
    model: TinyDLM,
    task: Task,
    items: list[Item],
    policy: Policy,
    temperature: float,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """One policy on one task, one step a forward and verified: same questions, same noise, same batches."""
    plain = LLaDASampler(model, policy=policy)
    verified = LLaDASampler(model, policy=policy, verify=DraftVerify(WIDTH))
    count = Count()
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        settings = {"temperature": temperature, "request_ids": list(range(start, start + len(batch)))}
        expected, out = _generate(plain, batch, **settings), _generate(verified, batch, **settings)
        equal = (out.sequences == expected.sequences).all(-1)
        count.n += len(batch)
        count.right += sum(
            task.check(item.prompt, answer.tolist()) for item, answer in zip(batch, out.completions, strict=True)
        )
        count.same += int(equal.sum())
        count.sequential += int(expected.nfe.sum())
        count.verified += int(out.nfe.sum())
        count.canvases += int(out.canvases.sum())
        count.text += int(out.generated.sum())
        for row in (~equal).nonzero()[:, 0].tolist():
            count.unlike += 1
            count.guarded += _guard_helps(model, policy, temperature, batch[row], start + row)
        advance()
    low, high = wilson(count.right, count.n)
    return {
        "task": task.name,
        "policy": str(policy),
        "temperature": temperature,
        "n": count.n,
        "accuracy": count.right / count.n,
        "interval_95": [low, high],
        "equal_to_sequential": count.same,
        "unlike": count.unlike,
        "of_those_equal_alone_with_guard": count.guarded,
        "sequential_forwards": count.sequential,
        "forwards": count.verified,
        "canvases": count.canvases,
        "text_tokens": count.text,
        "committed_per_forward": count.sequential / count.verified,  # one commit a forward in the sequential sampler
        "text_per_forward": count.text / count.verified,
    }


def _generate(sampler: LLaDASampler, items: list[Item], **settings: Any) -> SamplerOutput:
    prompts = [item.prompt for item in items]
    return sampler.generate(prompts, max_new_tokens=NEW_TOKENS, block_length=NEW_TOKENS, seed=SEED, **settings)


def _guard_helps(model: TinyDLM, policy: Policy, temperature: float, item: Item, request: int) -> bool:
    """Whether the row, alone and guarded, gets the tokens that the sequential sampler gives it alone."""
    if temperature > 0:
        return False
    settings = {"temperature": temperature, "request_ids": [request]}
    alone = _generate(LLaDASampler(model, policy=policy), [item], **settings)
    verify = DraftVerify(WIDTH, guard=GUARD)
    guarded = _generate(LLaDASampler(model, policy=policy, verify=verify), [item], **settings)
    return torch.equal(alone.sequences, guarded.sequences)


def on_text(model: TinyDLM, prompts: list[list[int]], new_tokens: int = TEXT_TOKENS) -> list[dict[str, Any]]:
    """The same counts on continuations of held-out text, which the model is never sure of. No accuracy: there is no answer."""
    found = []
    for temperature in TEMPERATURES:
        for policy in policies():
            settings: dict[str, Any] = {"max_new_tokens": new_tokens, "block_length": new_tokens, "seed": SEED}
            settings["temperature"] = temperature
            expected = LLaDASampler(model, policy=policy).generate(prompts, **settings)
            out = LLaDASampler(model, policy=policy, verify=DraftVerify(WIDTH)).generate(prompts, **settings)
            equal = int((out.sequences == expected.sequences).all(-1).sum())
            sums = {"sequential_forwards": expected.nfe, "forwards": out.nfe, "canvases": out.canvases}
            total = {name: int(value.sum()) for name, value in sums.items()}
            found.append(
                {
                    "task": "text",
                    "policy": str(policy),
                    "temperature": temperature,
                    "n": len(prompts),
                    "accuracy": None,
                    "equal_to_sequential": equal,
                    **total,
                    "committed_per_forward": total["sequential_forwards"] / total["forwards"],
                    "text_per_forward": int(out.generated.sum()) / total["forwards"],
                }
            )
    return found


def text_prompts(n: int) -> list[list[int]]:
    """Starts of held-out text."""
    return held_out_prompts(TextTokenizer.read(MODELS / "text" / "tokenizer.json"), n, TEXT_PROMPT)


def overall(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every policy and temperature over all tasks."""
    found = []
    for temperature in TEMPERATURES:
        for policy in map(str, policies()):
            mine = [row for row in rows if row["policy"] == policy and row["temperature"] == temperature]
            total = {
                key: sum(row[key] for row in mine)
                for key in ("n", "equal_to_sequential", "sequential_forwards", "forwards", "canvases", "text_tokens")
            }
            found.append(
                {
                    "task": "all",
                    "policy": policy,
                    "temperature": temperature,
                    **total,
                    "accuracy": sum(row["accuracy"] * row["n"] for row in mine) / total["n"],
                    "committed_per_forward": total["sequential_forwards"] / total["forwards"],
                    "text_per_forward": total["text_tokens"] / total["forwards"],
                }
            )
    return found


def time_widths(model: TinyDLM, policy: Policy, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Seconds of a batch at each width, interleaved, and the width that "auto" took."""
    found = []
    for rows in BATCHES_TIMED:
        items = [questions(TASKS[name], 1 + rows // len(TASKS), TEST_SEED)[0] for name in TASKS] * rows
        samplers = {w: LLaDASampler(model, policy=policy, verify=DraftVerify(w)) for w in WIDTHS_TIMED}
        samplers = {"sequential": LLaDASampler(model, policy=policy), **samplers}
        outputs = {width: _generate(sampler, items[:rows]) for width, sampler in samplers.items()}
        seconds: dict[Any, list[float]] = {width: [] for width in samplers}
        for _ in range(rounds):
            for width, sampler in samplers.items():
                begin = time.perf_counter()
                _generate(sampler, items[:rows])
                seconds[width].append(time.perf_counter() - begin)
        for width, times in seconds.items():
            out = outputs[width]
            found.append(
                {
                    "batch": rows,
                    "width": width,
                    "canvases_a_forward": float(out.canvases.sum() / out.nfe.sum()),
                    "forwards": int(out.nfe.max()),
                    "seconds": [quantile(times, q) for q in (0.2, 0.5, 0.8)],
                }
            )
    return found


def calibrate(model: TinyDLM, items: int, patterns: int = 64) -> dict[int, float]:
    """The draft graph: sets of ranks of the confidence order, the most useful first, with how often the walk met each.

    Chosen greedily: always the set at which most of the recorded walks leave the graph. Weights never rise along the list.
    """
    walks = [walk for task in TASKS.values() for walk in _walks(model, questions(task, items, CALIBRATION_SEED))]
    visits = Counter(number for walk in walks for number in walk)
    graph: dict[int, float] = {}
    left, weight = [list(walk) for walk in walks], 1.0
    while len(graph) < patterns:
        left = [walk for walk in left if walk]
        if not left:
            break
        number = Counter(walk[0] for walk in left).most_common(1)[0][0]
        weight = min(weight, visits[number] / len(walks))
        graph[number] = round(weight, 5)
        for walk in left:
            while walk and walk[0] in graph:
                walk.pop(0)
    return graph


def _walks(model: TinyDLM, items: list[Item]) -> Iterator[list[int]]:
    """From every canvas of the sequential walk: the sets it comes through after that, as far as drafts can follow it."""
    policy = FixedQuota("confidence", tokens_per_step=1)
    states: list[Any] = []

    def record(sampler: Any, step: int, state: Any) -> None:
        states.append(state.take(torch.arange(len(state.tokens))))
        states[-1].enter_blocks()

    graph = Graph()
    for item in items:
        states.clear()
        sampler = LLaDASampler(model, policy=policy)
        sampler.generate([item.prompt], max_new_tokens=NEW_TOKENS, callback_on_step_end=record)
        for at in range(len(states) - 2):
            root, known = states[at + 1], states[at].tokens
            scores = score_tokens(model(known).logits, suppress_ids=[model.config.mask_token_id])
            place = places(scores.confidence, root, 1)
            later = torch.cat([state.tokens for state in states[at + 2 : at + 2 + graph.reach]])
            changed = later != root.tokens
            drafted = (~changed | ((later == scores.token) & (place < graph.reach))).all(-1)
            numbers = graph.number(changed[None], place[:, None])[0]
            yield [int(number) for number, fits in zip(numbers, drafted.long().cumprod(0), strict=True) if fits]


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{rows[0]['task']}, {rows[0]['n']:,} questions, width {WIDTH}", title_justify="left")
    for column in ("policy", "T", "accuracy, %", "equal", "commits a forward", "of text", "canvases a commit"):
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["policy"],
            f"{row['temperature']:g}",
            "" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}",
            f"{row['equal_to_sequential']:,}",
            f"{row['committed_per_forward']:.2f}",
            f"{row['text_per_forward']:.2f}",
            f"{row['canvases'] / row['sequential_forwards']:.2f}",
        )
    return table


def table_of_times(times: list[dict[str, Any]]) -> Table:
    table = Table(title=f"wall time against width, {policies()[-1]}", title_justify="left")
    for column in ("batch", "width", "canvases a forward", "forwards", "ms, median", "p20 - p80"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in times:
        low, median, high = (1000 * seconds for seconds in row["seconds"])
        table.add_row(
            str(row["batch"]),
            str(row["width"]),
            f"{row['canvases_a_forward']:.1f}",
            str(row["forwards"]),
            f"{median:.0f}",
            f"{low:.0f} - {high:.0f}",
        )
    return table


if __name__ == "__main__":
    with torch.inference_mode():
        print(calibrate(load("reasoning"), items=12))
