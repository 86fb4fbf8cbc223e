"""Prompts of mixed length and difficulty: a batch that refills, against one by one and against a batch that waits."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from dlm_benches.demo.methods import NEW_TOKENS
from dlm_benches.stats import quantile
from dlm_benches.tiny.model import TinyDLM
from dlm_benches.tiny.tasks import TASKS
from dlm_samplers import LLaDASampler, SamplerOutput, Threshold

PROMPTS, BATCH, ROUNDS, TAU = 64, 16, 7, 0.9


def run(model: TinyDLM, prompts: int = PROMPTS, batch: int = BATCH, rounds: int = ROUNDS) -> dict[str, Any]:
    """The document of the suite. Every way fills the whole generation length, so that all do the same work."""
    asked = mixed_prompts(prompts)
    sampler = LLaDASampler(model, policy=Threshold(TAU))
    settings: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "block_length": NEW_TOKENS}

    def refilled() -> SamplerOutput:
        return sampler.generate(asked, batch_size=batch, **settings)

    def one_by_one() -> list[SamplerOutput]:
        return [sampler.generate([prompt], request_ids=[row], **settings) for row, prompt in enumerate(asked)]

    def waiting() -> tuple[list[list[int]], int]:
        answers, computed = [], 0
        for start in range(0, prompts, batch):
            tokens, forwards = synchronous(model, asked[start : start + batch])
            answers += tokens
            computed += forwards * len(tokens)
        return answers, computed

    rows = _CountRows(model)
    sampler.adapter.model = rows
    together = refilled()
    computed = rows.count
    sampler.adapter.model = model
    alone = one_by_one()
    answers, computed_waiting = waiting()
    needed = sum(int(out.nfe[0]) for out in alone)
    seconds: dict[str, list[float]] = {"refilled": [], "one by one": [], "waiting for the slowest": []}
    ways = dict(zip(seconds, (refilled, one_by_one, waiting), strict=True))
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()  # type: ignore[operator]
            seconds[name].append(time.perf_counter() - begin)
    return {
        "suite": "ragged",
        "prompts": prompts,
        "batch": batch,
        "policy": repr(Threshold(TAU)),
        "rows_equal_to_alone": sum(
            torch.equal(a.completions[0], b) for a, b in zip(alone, together.completions, strict=True)
        ),
        "rows_equal_to_waiting": sum(a == _region(b) for a, b in zip(answers, alone, strict=True)),
        "row_forwards": {"needed": needed, "refilled": computed, "waiting for the slowest": computed_waiting},
        "forwards_of_a_row": {"mean": needed / prompts, "largest": max(int(out.nfe[0]) for out in alone)},
        "seconds": {name: [quantile(times, q) for q in (0.2, 0.5, 0.8)] for name, times in seconds.items()},
        "times_faster_than": {
            name: [
                quantile([b / a for a, b in zip(seconds["refilled"], times, strict=True)], q) for q in (0.2, 0.5, 0.8)
            ]
            for name, times in seconds.items()
        },
    }


def mixed_prompts(n: int) -> list[list[int]]:
    """n questions, the tasks in turn, in random order."""
    rng = np.random.default_rng(5)
    names = sorted(TASKS)
    found = [TASKS[names[i % len(names)]].sample(rng, 1, "test")[0].prompt for i in range(n)]
    return [found[i] for i in rng.permutation(n)]


@torch.no_grad()
def synchronous(model: TinyDLM, prompts: list[list[int]]) -> tuple[list[list[int]], int]:
    """Threshold decoding as it is published for a batch: every row is computed until the last one is done.

    Rows are padded on the right. Returns the generated regions and the number of forwards.
    """
    mask, pad = model.config.mask_token_id, model.config.pad_token_id
    starts = torch.tensor([len(prompt) for prompt in prompts])
    column = torch.arange(int(starts.max()) + NEW_TOKENS)
    tokens = torch.full((len(prompts), len(column)), pad)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    generated = (column >= starts[:, None]) & (column < starts[:, None] + NEW_TOKENS)
    tokens[generated] = mask
    valid = column < starts[:, None] + NEW_TOKENS
    forwards = 0
    while bool((masked := tokens == mask).any()):
        logits: Tensor = model(tokens, valid.long()).logits
        logits[..., mask] = -torch.inf
        confidence, proposal = logits.softmax(-1).max(-1)
        confidence = confidence.masked_fill(~masked, -1.0)
        best = torch.zeros_like(masked).scatter_(1, confidence.argmax(1, keepdim=True), True)
        tokens = torch.where(masked & ((confidence >= TAU) | best), proposal, tokens)
        forwards += 1
    return [row[keep].tolist() for row, keep in zip(tokens, generated, strict=True)], forwards


def _region(output: SamplerOutput) -> list[int]:
    return output.sequences[0, -NEW_TOKENS:].tolist()


class _CountRows:
    def __init__(self, model: TinyDLM) -> None:
        self.model, self.count = model, 0

    def __call__(self, tokens: Tensor, **kwargs: Any) -> Any:
        self.count += len(tokens)
        return self.model(tokens, **kwargs)


def table_of(document: dict[str, Any]) -> Table:
    table = Table(
        title=f"{document['prompts']} prompts of mixed length, batch {document['batch']}, {document['policy']}",
        title_justify="left",
        caption=f"{document['rows_equal_to_alone']} of {document['prompts']} rows have the tokens they have alone; "
        f"{document['rows_equal_to_waiting']} those of the batch that waits",
        caption_justify="left",
    )
    for column in ("", "rows computed", "s, median", "p20 - p80", "refilled is faster"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    computed = {**document["row_forwards"], "one by one": document["row_forwards"]["needed"]}
    for name, (low, median, high) in document["seconds"].items():
        ratio = document["times_faster_than"][name]
        table.add_row(
            name,
            f"{computed[name]:,}",
            f"{median:.3f}",
            f"{low:.3f} - {high:.3f}",
            f"{ratio[1]:.2f}x ({ratio[0]:.2f} - {ratio[2]:.2f})",
        )
    return table
