"""LLaDA2Pipeline of diffusers as it is and accelerated, on a random model of LLaDA2's shape: `dlm-bench pipelines`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor

from dlm_benches.environment import environment, write_json
from dlm_benches.kernels.report import console
from dlm_benches.stats import quantile

SCHEMA = "dlm-bench/pipelines/1"
ROUNDS = 5
UNLIKELY = -1e9
"""Logit of the mask token: the accelerated pipeline never generates it, and a random model would."""


@dataclass(frozen=True)
class Case:
    """A model and a call; every way gets the same."""

    rows: int = 1
    prompt: int = 64
    new: int = 256
    call: Mapping[str, Any] = field(default_factory=lambda: {"editing_threshold": None})
    layers: int = 12
    width: int = 256
    vocabulary: int = 8192
    block: int = 32
    sharpness: float = 8.0
    """Factor of the head's weights, so that the model is sure of some tokens."""

    def title(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.call.items()) or "defaults"
        shape = f"{self.layers} layers, width {self.width}, {self.vocabulary:,} tokens, blocks of {self.block}"
        return f"{self.rows} x ({self.prompt} + {self.new}) tokens, {settings}; {shape}"


LLADA2_VOCABULARY = 157_184

CASES = (Case(), Case(call={}), Case(rows=4, new=64), Case(call={}, vocabulary=LLADA2_VOCABULARY))


class Blocks(torch.nn.Module):
    """The model under masks of blocks: what LLaDA2's own uncached generation computes, through the pipeline's loop."""

    def __init__(self, model: Any, block: int) -> None:
        super().__init__()
        self.model, self.block, self.device = model, block, torch.device("cpu")

    def forward(self, tokens: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
        block = torch.arange(tokens.shape[1]) // self.block
        mask = (block[:, None] >= block).expand(len(tokens), 1, -1, -1)
        return self.model(tokens, mask, position_ids=position_ids)


@dataclass
class Way:
    """One way to generate, and the work that its last call was."""

    generate: Callable[[], Tensor]
    forwards: int = 0
    columns: int = 0

    def run(self, trunk: Any) -> tuple[float, Tensor]:
        self.forwards = self.columns = 0

        def count(_: Any, arguments: tuple[Tensor]) -> None:
            self.forwards, self.columns = self.forwards + 1, self.columns + arguments[0].numel()

        hook = trunk.embed_tokens.register_forward_pre_hook(count)
        start = time.perf_counter()
        tokens = self.generate()
        seconds = time.perf_counter() - start
        hook.remove()
        return seconds, tokens


def build(case: Case) -> tuple[Any, dict[str, Way]]:
    """(the model's trunk, {"pipeline", "block masks", "accelerated"})."""
    from diffusers import BlockRefinementScheduler, LLaDA2Pipeline

    from dlm_benches.architectures import LLaDA2StyleConfig, LLaDA2StyleModel
    from dlm_samplers import accelerate

    torch.manual_seed(0)
    config = LLaDA2StyleConfig(
        block_length=case.block,
        vocab_size=case.vocabulary,
        hidden_size=case.width,
        intermediate_size=case.width * 11 // 4,
        num_hidden_layers=case.layers,
        num_attention_heads=max(case.width // 64, 1),
        num_key_value_heads=1,
        initializer_range=case.width**-0.5,
        tie_word_embeddings=False,
    )
    model = LLaDA2StyleModel(config).eval()
    with torch.no_grad():
        model.lm_head.weight *= case.sharpness
    mask_id = config.mask_token_id

    def suppress(_module: Any, _arguments: Any, output: Any) -> None:
        output.logits[..., mask_id] = UNLIKELY

    model.register_forward_hook(suppress)
    prompts = torch.randint(mask_id, (case.rows, case.prompt))
    call = {"input_ids": prompts, "gen_length": case.new, "mask_token_id": mask_id, "output_type": "seq", **case.call}

    def way(module: Any, fast: bool = False) -> Way:
        pipe = LLaDA2Pipeline(module, BlockRefinementScheduler(block_length=case.block))
        pipe.set_progress_bar_config(disable=True)
        if fast:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the 2D mask, which is what the table shows
                accelerate(pipe)
        return Way(lambda: pipe(**call).sequences)

    blocks = Blocks(model, case.block)
    return model.model, {"pipeline": way(model), "block masks": way(blocks), "accelerated": way(model, fast=True)}


def run(
    cases: Sequence[Case], rounds: int = ROUNDS, show: Callable[[dict[str, Any]], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Figures of every case, JSON-able; the ways take turns, after a call of each that is not timed."""
    results = []
    for case in cases:
        trunk, ways = build(case)
        texts = {name: way.run(trunk)[1] for name, way in ways.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                taken, tokens = way.run(trunk)
                assert torch.equal(tokens, texts[name]), f"{name} gives another text in another call"
                seconds[name].append(taken)
        correct = texts["block masks"]
        figures = {
            name: {
                "seconds": _spread(times),
                "times_faster": _spread([a / b for a, b in zip(seconds["pipeline"], times, strict=True)]),
                "forwards": ways[name].forwards,
                "columns": ways[name].columns,
                "same_text": bool(torch.equal(texts[name], correct)),
                "same_tokens": float((texts[name] == correct).float().mean()),
            }
            for name, times in seconds.items()
        }
        results.append({"case": case.title(), "rounds": rounds, "ways": figures})
        show(results[-1])
    return results


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": quantile(values, 0.5), "p20": quantile(values, 0.2), "p80": quantile(values, 0.8)}


def table_of(results: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="LLaDA2Pipeline of diffusers", title_justify="left")
    for column in ("", "s", "p20 - p80", "times faster", "forwards", "columns", "tokens as block-causal"):
        table.add_column(column, justify="right" if column else "left")
    for result in results:
        table.add_row(result["case"])
        for name, figures in result["ways"].items():
            s, faster = figures["seconds"], figures["times_faster"]
            table.add_row(
                f"  {name}",
                f"{s['median']:.2f}",
                f"{s['p20']:.2f} - {s['p80']:.2f}",
                f"{faster['median']:.1f} ({faster['p20']:.1f} - {faster['p80']:.1f})",
                str(figures["forwards"]),
                str(figures["columns"]),
                "all" if figures["same_text"] else f"{figures['same_tokens']:.0%}",
            )
    return table


def pipelines(
    threads: Annotated[int | None, typer.Option(min=1, help="Default: torch's.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each.")] = ROUNDS,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Times diffusers' LLaDA2Pipeline as it is, under correct attention masks, and accelerated; says whose text is whose."""
    try:
        import diffusers  # noqa: F401
    except ImportError:
        raise typer.BadParameter("diffusers is not installed: pip install 'dlm-kernels[hf]'") from None
    if threads is not None:
        torch.set_num_threads(threads)
    results = run(CASES, rounds, show=lambda result: print(result["case"], flush=True))
    console().print(table_of(results))
    if json_file is not None:
        write_json(json_file, {"schema": SCHEMA, "environment": environment(), "results": results})
