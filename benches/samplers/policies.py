"""Every policy and the compositions worth knowing, on every task: accuracy, forwards, time, guarantee."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from rich.table import Table
from torch import Tensor

from dlm_benches.demo.measure import BATCH, TEST_SEED, TOLERANCE, Tally, answer, questions
from dlm_benches.demo.methods import Method, ours, published
from dlm_benches.tiny import vocab
from dlm_benches.tiny.model import TinyDLM
from dlm_benches.tiny.tasks import TASKS
from dlm_samplers import (
    DAEDAL,
    AdaBlock,
    CappedThreshold,
    ConfidenceDrop,
    Credit,
    Dilated,
    DraftVerify,
    EndOfText,
    EntropyBound,
    ExploreOne,
    Factor,
    FixedQuota,
    FrozenConfidence,
    Hierarchical,
    KLStable,
    LocalLeap,
    Margin,
    ModelSpec,
    PCSampler,
    Policy,
    Prophet,
    ReMDM,
    Saber,
    SchED,
    SelfPlanning,
    ShadowVerify,
    SlowFast,
    Spaced,
    StableAndConfident,
    Threshold,
    TokenEditing,
    background_frequencies,
)

CORPUS_SEED, CORPUS = 3, 500
"""Of the training answers, and how many a task, that PCSampler's frequencies are counted in."""

GOALS = {"bounded at 6x fewer": ("bounded", 6.0), "any at 12x fewer": (None, 12.0)}
"""Of what the last lines count the tasks: guarantee at least as strong, and how many times fewer forwards."""


def methods(model: TinyDLM) -> list[Method]:
    """The published sampler first, then every policy with its paper's settings or some around them, then compositions."""
    found = [Method("published, 1 a forward", "published", "reference", lambda items: published(model, items))]
    found += [ours(str(policy), "policy", model, policy) for policy in policies()]
    spec = ModelSpec.of(
        model, any_attention=True, position_ids="position_ids"
    )  # ShadowVerify shows it more than a canvas
    for parts in compositions():
        sampler = ours("", "policy", model, spec=spec, **parts)
        name = " + ".join(
            str(part) for value in parts.values() for part in (value if isinstance(value, list) else [value])
        )
        found.append(replace(sampler, name=name))
    return found


def policies() -> list[Policy]:
    return [
        FixedQuota(tokens_per_step=1),
        FixedQuota("margin", tokens_per_step=1),
        FixedQuota("entropy", tokens_per_step=1),
        FixedQuota("random", tokens_per_step=1),
        FixedQuota("left_to_right", tokens_per_step=1),
        FrozenConfidence(8),
        FixedQuota(tokens_per_step=8),
        *(Threshold(tau) for tau in (0.7, 0.9, 0.95, 0.99)),
        *(Factor(f) for f in (0.25, 0.5, 1.0)),
        *(EntropyBound(gamma) for gamma in (0.01, 0.1, 0.3)),
        *(Margin(tau) for tau in (0.8, 0.95)),
        *(KLStable(tau) for tau in (0.6, 0.9)),
        Credit(),
        Hierarchical(),
        LocalLeap(),
        SlowFast(),
        Dilated(),
        Spaced(Threshold(0.9)),
        CappedThreshold(0.6),
        ExploreOne(Threshold(0.9)),
        Factor(1.0, upstream_quirk=True),
        Saber(),
        AdaBlock((vocab.EOS,)),
        PCSampler(frequencies(), inner=FixedQuota(tokens_per_step=1)),
    ]


def frequencies() -> Tensor:
    """float32 [V]: how often each symbol occurs in training answers, with the end of text."""
    rng = np.random.default_rng(CORPUS_SEED)
    answers = [[*item.answer, vocab.EOS] for task in TASKS.values() for item in task.sample(rng, CORPUS, "train")]
    return background_frequencies(answers, vocab.SIZE)


def compositions() -> list[dict[str, Any]]:
    """Arguments of a sampler."""
    return [
        {"policy": FixedQuota(tokens_per_step=1), "verify": DraftVerify(16)},
        {"policy": FixedQuota("left_to_right", tokens_per_step=1), "verify": DraftVerify(16)},
        {"policy": FrozenConfidence(8), "verify": DraftVerify(8)},
        {"policy": Factor(0.5), "verify": DraftVerify(8)},
        {"policy": Threshold(0.9), "stopping": [StableAndConfident(), EndOfText()]},
        {"policy": FixedQuota(tokens_per_step=1), "stopping": [SchED()]},
        {"policy": FixedQuota(tokens_per_step=1), "stopping": [Prophet(0)]},
        {"policy": Threshold(0.9), "length": DAEDAL(l_init=8, e_factor=4, w_eos=4)},
        {"remask": ShadowVerify(), "stopping": []},
        {"remask": ReMDM("rescale", eta=0.05), "stopping": []},
        {"remask": SelfPlanning(), "stopping": []},
        {"policy": Saber(), "remask": ConfidenceDrop(), "stopping": []},
        {"policy": Threshold(0.7, strict=True), "remask": TokenEditing(), "stopping": []},
    ]


def run(
    model: TinyDLM,
    items: int,
    tasks: list[str],
    *,
    advance: Callable[[], None] = lambda: None,
    show: Callable[[Table], None] = lambda _: None,
) -> dict[str, Any]:
    """The document of the suite. `advance` is called `steps(...)` times, `show` with the table of each task."""
    compared = methods(model)
    results = []
    for name in tasks:
        task = TASKS[name]
        tallies = answer(task, compared, questions(task, items, TEST_SEED), advance)
        results.append(summary(name, compared, tallies))
        show(table_of(results[-1]))
    return {"suite": "policies", "batch": BATCH, "tasks": results, "goals": goals(results)}


def steps(items: int, tasks: list[str]) -> int:
    return (1 + len(policies()) + len(compositions())) * len(tasks) * -(-items // BATCH)


def summary(task: str, compared: list[Method], tallies: dict[str, Tally]) -> dict[str, Any]:
    reference = tallies[compared[0].name]
    rows = []
    for method in compared:
        row = tallies[method.name].summary(reference)
        row["times_fewer_forwards"] = reference.forwards / max(tallies[method.name].forwards, 1)
        row["within_1_point"] = row["accuracy"] >= reference.accuracy - TOLERANCE
        rows.append({"name": method.name, "guarantee": method.guarantee, **row})
    return {"task": task, "methods": rows}


def goals(results: list[dict[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """For each goal the settings that reach it, with the tasks they reach it on, most tasks first."""
    reached: dict[str, dict[str, list[str]]] = {}
    for goal, (guarantee, times) in GOALS.items():
        tasks: dict[str, list[str]] = {}
        for result in results:
            for row in result["methods"]:
                strong = guarantee is None or row["guarantee"] == guarantee
                if strong and row["within_1_point"] and row["times_fewer_forwards"] >= times:
                    tasks.setdefault(row["name"], []).append(result["task"])
        reached[goal] = dict(sorted(tasks.items(), key=lambda pair: -len(pair[1])))
    return reached


def table_of(result: dict[str, Any]) -> Table:
    n = result["methods"][0]["n"]
    table = Table(title=f"{result['task']}, {n:,} questions", title_justify="left")
    table.caption = (
        "dim: more than a point below published. Each guarantee is relative to the policy's own one-by-one form."
    )
    table.caption_justify = "left"
    for column in ("policy", "accuracy, % (95 %)", "forwards", "fewer", "tokens a forward", "time", "guarantee"):
        table.add_column(column, justify="left" if column in ("policy", "guarantee") else "right", no_wrap=True)
    for row in result["methods"]:
        low, high = (100 * bound for bound in row["interval_95"])
        table.add_row(
            row["name"],
            f"{100 * row['accuracy']:.1f} ({low:.1f} - {high:.1f})",
            f"{row['forwards']:.2f}",
            f"{row['times_fewer_forwards']:.1f}x",
            f"{row['tokens_per_forward']:.2f}",
            f"{row['wall_ratio']:.1f}x faster" if row["wall_ratio"] else "",
            row["guarantee"],
            style=None if row["within_1_point"] else "dim",
        )
    return table
