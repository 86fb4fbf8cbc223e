"""What caches cost in quality on the `reasoning` model, and what they save on a model of a realistic shape."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from dlm_benches.demo.measure import BATCH, TEST_SEED, questions
from dlm_benches.demo.methods import NEW_TOKENS
from dlm_benches.stats import quantile, wilson
from dlm_benches.tiny.model import TinyDLM
from dlm_benches.tiny.tasks import TASKS
from dlm_benches.transformer import Layer
from dlm_kernels import TokenScores
from dlm_samplers import (
    Cache,
    DelayedCache,
    DualCache,
    EndOfText,
    FeatureCache,
    LLaDASampler,
    ModelSpec,
    PrefixCache,
    SamplerState,
    SparseCache,
    SuffixWindow,
    Threshold,
)
from dlm_samplers.policies.wrapper import Wrapper

TAU, BLOCK = 0.9, 8
SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
PROMPT, NEW, LONG_BLOCK, LONG_TAU, ROUNDS = 512, 256, 32, 0.25, 3


def values(layer: Layer, x: Tensor) -> Tensor:
    """[b, n, D]: what a layer of the tiny model attends to."""
    return layer.self_attn.qkv_proj(layer.input_layernorm(x))[..., 2 * x.shape[-1] :]


def caches_of_tiny() -> list[Cache | None]:
    return [
        None,
        PrefixCache(),
        DualCache(),
        DelayedCache(4),
        DelayedCache(),
        FeatureCache(value=values),
        SparseCache(),
        SuffixWindow(window=16),
        SuffixWindow(window=16, inner=PrefixCache()),
    ]


def caches_of_long() -> list[Cache | None]:
    return [
        None,
        PrefixCache(),
        DualCache(),
        DelayedCache(),
        FeatureCache(),
        SparseCache(),
        SuffixWindow(),
        SuffixWindow(inner=PrefixCache()),
    ]


@dataclass(frozen=True)
class Watched(Wrapper):
    """A policy that writes down how confident the sampler is of what it commits, and how the model is without a cache."""

    inner: Threshold
    exact: LLaDASampler
    differences: list[Tensor] = field(default_factory=list, repr=False)

    guarantee = Threshold.guarantee

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        chosen = super().select(scores, state)
        logits = self.exact.adapter.forward(state.tokens, state.valid)
        logits[..., state.mask_id] = -torch.inf
        without = logits.softmax(-1).gather(-1, scores.token.clamp(min=0)[..., None])[..., 0]
        self.differences.append((scores.confidence - without)[chosen])
        return chosen


def quality(model: TinyDLM, items: int, tasks: list[str], advance: Callable[[], None]) -> list[dict[str, Any]]:
    """Accuracy, forwards and columns of each cache, and what changes beside no cache, task by task."""
    spec = ModelSpec.of(model, hidden="hidden", lm_head="lm_head", position_ids="position_ids")
    exact = LLaDASampler(model)
    found = []
    for name in tasks:
        asked = questions(TASKS[name], items, TEST_SEED)
        rows: list[dict[str, Any]] = []
        plain: list[list[int]] = []
        for cache in caches_of_tiny():
            policy = Watched(Threshold(TAU), exact)
            sampler = LLaDASampler(model, policy=policy, cache=cache, spec=spec, stopping=[EndOfText()])
            answers: list[list[int]] = []
            forwards = columns = 0
            for start in range(0, items, BATCH):
                out = sampler.generate(
                    [item.prompt for item in asked[start : start + BATCH]],
                    max_new_tokens=NEW_TOKENS,
                    block_length=BLOCK,
                )
                answers += [completion.tolist() for completion in out.completions]
                forwards, columns = forwards + int(out.nfe.sum()), columns + int(out.positions.sum())
                advance()
            plain = plain or answers
            right = sum(TASKS[name].check(item.prompt, answer) for item, answer in zip(asked, answers, strict=True))
            bias = torch.cat(policy.differences)
            rows.append(
                {
                    "cache": str(cache or "none"),
                    "n": items,
                    "accuracy": right / items,
                    "interval_95": list(wilson(right, items)),
                    "forwards": forwards / items,
                    "columns": columns / items,
                    "answers_that_differ": sum(a != b for a, b in zip(answers, plain, strict=True)),
                    "tokens_that_differ": share_that_differs(answers, plain),
                    "confidence_bias": float(bias.mean()),
                    "confidence_bias_p1_p99": [quantile(bias.tolist(), q) for q in (0.01, 0.99)],
                }
            )
        found.append({"task": name, "caches": rows})
    return found


def share_that_differs(answers: list[list[int]], others: list[list[int]]) -> float:
    """Of the tokens of both, position by position; what only one of the two has differs."""
    differ = total = 0
    for one, other in zip(answers, others, strict=True):
        longest = max(len(one), len(other))
        total += longest
        differ += longest - sum(a == b for a, b in zip(one, other, strict=False))
    return differ / max(total, 1)


def speed(
    rounds: int = ROUNDS, prompt: int = PROMPT, new: int = NEW, advance: Callable[[], None] = lambda: None
) -> Any:
    """Wall time of each cache on a LLaDA-type model with random weights at batch 1, interleaved."""
    from dlm_benches.architectures import LLaDAStyleConfig, LLaDAStyleModel

    torch.manual_seed(0)
    model = LLaDAStyleModel(LLaDAStyleConfig(**SHAPE)).eval()
    spec = ModelSpec.of(model, hidden="model", lm_head="lm_head")
    asked = torch.randint(SHAPE["vocab_size"] - 1, (1, prompt), generator=torch.Generator().manual_seed(1))
    samplers = {
        str(cache or "none"): LLaDASampler(model, policy=Threshold(LONG_TAU), cache=cache, spec=spec)
        for cache in caches_of_long()
    }
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    outputs = {}
    for _ in range(rounds):
        for name, sampler in samplers.items():
            begin = time.perf_counter()
            outputs[name] = sampler.generate(asked, max_new_tokens=new, block_length=LONG_BLOCK)
            seconds[name].append(time.perf_counter() - begin)
            advance()
    plain = outputs["none"].sequences[0, prompt:].tolist()
    return {
        "model": {**SHAPE, "parameters": sum(p.numel() for p in model.parameters())},
        "prompt": prompt,
        "new_tokens": new,
        "block_length": LONG_BLOCK,
        "policy": str(Threshold(LONG_TAU)),
        "caches": [
            {
                "cache": name,
                "forwards": int(out.nfe[0]),
                "columns": int(out.positions[0]) or int(out.nfe[0]) * (prompt + new),
                "tokens_that_differ": share_that_differs([out.sequences[0, prompt:].tolist()], [plain]),
                "seconds": [quantile(seconds[name], q) for q in (0.2, 0.5, 0.8)],
                "times_faster": [
                    quantile([a / b for a, b in zip(seconds["none"], seconds[name], strict=True)], q)
                    for q in (0.2, 0.5, 0.8)
                ],
            }
            for name, out in outputs.items()
        ],
    }


def run(
    model: TinyDLM,
    items: int,
    tasks: list[str],
    *,
    advance: Callable[[], None] = lambda: None,
    show: Callable[[Table], None] = lambda _: None,
) -> dict[str, Any]:
    """The document of the suite."""
    timed = speed(advance=advance)
    show(table_of_speed(timed))
    found = quality(model, items, tasks, advance)
    for result in found:
        show(table_of(result))
    return {"suite": "caches", "policy": str(Threshold(TAU)), "block_length": BLOCK, "tasks": found, "speed": timed}


def steps(items: int, tasks: list[str]) -> int:
    return ROUNDS * len(caches_of_long()) + len(tasks) * len(caches_of_tiny()) * -(-items // BATCH)


def table_of(result: dict[str, Any]) -> Table:
    n = result["caches"][0]["n"]
    table = Table(title=f"{result['task']}, {n:,} questions, blocks of {BLOCK}, {Threshold(TAU)}", title_justify="left")
    table.caption = "bias: confidence in what commits less the model's own without a cache"
    table.caption_justify = "left"
    for column in ("cache", "accuracy, % (95 %)", "forwards", "columns", "answers that differ", "bias (p1, p99)"):
        table.add_column(column, justify="left" if column == "cache" else "right", no_wrap=True)
    for row in result["caches"]:
        low, high = (100 * bound for bound in row["interval_95"])
        p1, p99 = row["confidence_bias_p1_p99"]
        table.add_row(
            row["cache"],
            f"{100 * row['accuracy']:.1f} ({low:.1f} - {high:.1f})",
            f"{row['forwards']:.2f}",
            f"{row['columns']:.0f}",
            f"{row['answers_that_differ']} ({100 * row['tokens_that_differ']:.1f} % of tokens)",
            f"{row['confidence_bias']:+.4f} ({p1:+.3f}, {p99:+.3f})",
        )
    return table


def table_of_speed(document: dict[str, Any]) -> Table:
    shape = document["model"]
    model = f"LLaDA-type model, {shape['num_hidden_layers']} layers of {shape['hidden_size']}, random weights, batch 1"
    asked = f"prompt {document['prompt']}, {document['new_tokens']} new, blocks of {document['block_length']}"
    table = Table(title=f"{model}, {asked}, {document['policy']}", title_justify="left")
    for column in ("cache", "forwards", "columns", "tokens that differ", "s, median", "p20 - p80", "faster than none"):
        table.add_column(column, justify="left" if column == "cache" else "right", no_wrap=True)
    for row in document["caches"]:
        low, median, high = row["seconds"]
        a, b, c = row["times_faster"]
        table.add_row(
            row["cache"],
            str(row["forwards"]),
            f"{row['columns']:,}",
            f"{100 * row['tokens_that_differ']:.0f} %",
            f"{median:.2f}",
            f"{low:.2f} - {high:.2f}",
            f"{b:.2f}x ({a:.2f} - {c:.2f})",
        )
    return table
