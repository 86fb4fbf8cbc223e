"""Runs every method on every task, interleaved batch by batch, and sums up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dlm_benches.demo.methods import Method
from dlm_benches.stats import quantile, wilson
from dlm_benches.tiny.tasks import Item, Task

BATCH = 50
CALIBRATION_SEED, TEST_SEED = 1, 2
TOLERANCE = 0.01
"""How much accuracy the setting picked for a task may lose on the calibration questions."""


@dataclass
class Tally:
    """One method on one task."""

    n: int = 0
    right: int = 0
    same_as_published: int = 0
    forwards: int = 0
    tokens: int = 0
    seconds: float = 0.0
    batch_seconds: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        return self.right / max(self.n, 1)

    @property
    def mean_forwards(self) -> float:
        return self.forwards / max(self.n, 1)

    def summary(self, published: Tally) -> dict[str, Any]:
        """JSON-able figures, relative to the published sampler where a ratio is meant."""
        low, high = wilson(self.right, self.n)
        ratios = [p / s for p, s in zip(published.batch_seconds, self.batch_seconds, strict=True)]
        return {
            "n": self.n,
            "accuracy": self.accuracy,
            "interval_95": [low, high],
            "same_answer_as_published": self.same_as_published,
            "forwards": self.mean_forwards,
            "tokens_per_forward": self.tokens / max(self.forwards, 1),
            "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
            "seconds": self.seconds,
            "wall_ratio": published.seconds / self.seconds if self.seconds else None,
            "wall_ratio_p20_p80": [quantile(ratios, 0.2), quantile(ratios, 0.8)],
            "latency_ms_batch_1": quantile(self.latency_ms, 0.5),
        }


@dataclass
class TaskResult:
    """All methods on one task, and the setting picked for it on other questions."""

    task: str
    tallies: dict[str, Tally]
    picked: str

    def summary(self) -> dict[str, Any]:
        published = next(iter(self.tallies.values()))
        return {
            "task": self.task,
            "picked": self.picked,
            "methods": {name: tally.summary(published) for name, tally in self.tallies.items()},
        }


def questions(task: Task, n: int, seed: int) -> list[Item]:
    """n held-out questions, by length of prompt so that a batch needs little padding."""
    return sorted(task.sample(np.random.default_rng(seed), n, "test"), key=lambda item: len(item.prompt))


def measure(
    task: Task, methods: list[Method], n: int, *, latency_items: int, advance: Callable[[], None] = lambda: None
) -> TaskResult:
    """Answers n held-out questions with every method. `advance` is called once per method and batch."""
    picked = pick(task, methods, max(n // 3, 100), advance)
    items = questions(task, n, TEST_SEED)
    tallies = answer(task, methods, items, advance)
    for item in items[:: max(n // latency_items, 1)][:latency_items]:
        for method in methods:
            begin = time.perf_counter()
            method.run([item])
            tallies[method.name].latency_ms.append(1000 * (time.perf_counter() - begin))
    return TaskResult(task.name, tallies, picked)


def answer(
    task: Task, methods: list[Method], items: list[Item], advance: Callable[[], None] = lambda: None
) -> dict[str, Tally]:
    """Every method's answers to the same questions, checked and timed, interleaved batch by batch. The published sampler
    comes first. `advance` is called once per method and batch."""
    tallies = {method.name: Tally() for method in methods}
    for method in methods:
        method.run(items[:2])  # warm-up, not counted
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        published: list[list[int]] = []
        for method in methods:
            tally = tallies[method.name]
            begin = time.perf_counter()
            out = method.run(batch)
            seconds = time.perf_counter() - begin
            published = out.answers if method.kind == "published" else published
            tally.n += len(batch)
            tally.right += sum(task.check(item.prompt, answer) for item, answer in zip(batch, out.answers, strict=True))
            tally.same_as_published += sum(a == b for a, b in zip(out.answers, published, strict=True))
            tally.forwards += sum(out.nfe)
            tally.tokens += sum(out.tokens)
            tally.seconds += seconds
            tally.batch_seconds.append(seconds)
            advance()
    return tallies


def pick(task: Task, methods: list[Method], n: int, advance: Callable[[], None] = lambda: None) -> str:
    """The threshold or factor setting with the fewest forwards within `TOLERANCE` of the most accurate one, on calibration
    questions that the reported figures do not use."""
    items = questions(task, n, CALIBRATION_SEED)
    tallies: dict[str, Tally] = {}
    for method in filter(lambda m: m.adaptive, methods):
        tally = tallies[method.name] = Tally(n=n)
        for start in range(0, n, BATCH):
            batch = items[start : start + BATCH]
            out = method.run(batch)
            tally.right += sum(task.check(item.prompt, answer) for item, answer in zip(batch, out.answers, strict=True))
            tally.forwards += sum(out.nfe)
            advance()
    goal = max(tally.accuracy for tally in tallies.values()) - TOLERANCE
    good = {name: tally for name, tally in tallies.items() if tally.accuracy >= goal}
    return min(good, key=lambda name: good[name].forwards)


def steps(methods: list[Method], n: int) -> int:
    """How often `measure` calls `advance`."""
    calibration = -(-max(n // 3, 100) // BATCH) * sum(m.adaptive for m in methods)
    return calibration + -(-n // BATCH) * len(methods)


def overall(results: list[TaskResult], methods: list[Method]) -> dict[str, Any]:
    """Wall time of the picked settings against the published sampler and against ours at one token a forward."""
    published_name = next(m.name for m in methods if m.kind == "published")
    one_name = next(m.name for m in methods if m.kind == "one")
    seconds = {
        "published": sum(r.tallies[published_name].seconds for r in results),
        "one_a_forward_with_end_of_text_stop": sum(r.tallies[one_name].seconds for r in results),
        "picked": sum(r.tallies[r.picked].seconds for r in results),
    }
    good = [
        r.task
        for r in results
        if r.tallies[r.picked].accuracy >= r.tallies[one_name].accuracy - TOLERANCE
        and r.tallies[published_name].forwards >= 8 * r.tallies[r.picked].forwards
    ]
    return {
        "seconds": seconds,
        "wall_ratio_to_published": seconds["published"] / seconds["picked"],
        "wall_ratio_to_end_of_text_stop": seconds["one_a_forward_with_end_of_text_stop"] / seconds["picked"],
        "tasks_within_1_point_at_8_times_fewer_forwards": good,
    }


def document(
    results: list[TaskResult], methods: list[Method], environment: dict[str, Any], recipes: dict[str, Any]
) -> dict:
    """The content of demo.json."""
    return {
        "schema": "dlm-bench/demo/1",
        "environment": environment,
        "batch": BATCH,
        "methods": [{k: v for k, v in asdict(m).items() if k != "run"} for m in methods],
        "tasks": [result.summary() for result in results],
        "overall": overall(results, methods),
        "models": recipes,
    }
