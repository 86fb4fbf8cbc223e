"""`generate` of DiffusionGemma, fused against the original, on a tiny random model: `dlm-bench diffusion-gemma`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from dlm_benches.environment import environment, write_json
from dlm_benches.kernels.report import console
from dlm_benches.kernels.timing import memory
from dlm_benches.stats import quantile

SCHEMA = "dlm-bench/diffusion-gemma/1"
ROUNDS = 5
STEPS = 3
VOCABULARY, CANVAS = 262144, 256  # the published checkpoint's
BATCHES = (1,)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def random_model(vocabulary: int, canvas_length: int, sharpness: float = 40.0) -> Any:
    """DiffusionGemmaForBlockDiffusion of two narrow layers, the same in every run; sure of some tokens by `sharpness`."""
    import transformers

    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    text = transformers.DiffusionGemmaTextConfig(
        **heads,
        **{"vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"global_head_dim": 16, "num_global_key_value_heads": 1},
        **{"sliding_window": 32, "max_position_embeddings": 1024},
        **{"num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 16},
        layer_types=["sliding_attention", "full_attention"],
    )
    vision = {"model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.DiffusionGemmaConfig(
        text_config=text,
        vision_config=vision | heads | {"num_attention_heads": 1},
        canvas_length=canvas_length,
        **{"boi_token_id": 60, "eoi_token_id": 61, "image_token_id": 62},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    return model


@contextmanager
def watched(model: Any) -> Iterator[list[float]]:
    """Collects the seconds of every forward of encoder and decoder."""
    seconds: list[float] = []

    def timed(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            output = forward(*args, **kwargs)
            seconds.append(time.perf_counter() - begin)
            return output

        return call

    owners = model, model.model.encoder
    for owner in owners:
        owner.forward = timed(owner.forward)
    try:
        yield seconds
    finally:
        for owner in owners:
            del owner.forward


def measure(model: Any, generate: Callable[[], Any]) -> dict[str, float]:
    """Of one generation: forwards of the decoder, milliseconds a step in the model and outside it."""
    with watched(model) as forwards:
        begin = time.perf_counter()
        generate()
        total = time.perf_counter() - begin
    steps = len(forwards) - 1  # one is the encoder's
    inside = sum(forwards)
    return {"forwards": steps, "model_ms": 1e3 * inside / steps, "outside_ms": 1e3 * (total - inside) / steps}


def run(
    rounds: int = ROUNDS,
    vocabulary: int = VOCABULARY,
    canvas_length: int = CANVAS,
    batches: Sequence[int] = BATCHES,
    dtypes: Sequence[str] = tuple(DTYPES),
) -> list[dict[str, Any]]:
    """Figures of one canvas for every batch and dtype, JSON-able; the two take turns."""
    from dlm_samplers.integrations.transformers.diffusion_gemma import DiffusionGemmaSampler

    results = []
    for dtype in dtypes:
        model = random_model(vocabulary, canvas_length).to(DTYPES[dtype])
        sampler = DiffusionGemmaSampler(model)
        for batch in batches:
            ids = torch.randint(vocabulary, (batch, 8), generator=torch.Generator().manual_seed(0))
            # Nothing stops early, so that both take as many steps whatever they draw.
            settings = {"max_new_tokens": canvas_length, "max_denoising_steps": STEPS, "confidence_threshold": 1e-9}
            ways = {
                "fused": lambda ids=ids, s=sampler, k=settings: s.generate(ids, **k),
                "original": lambda ids=ids, m=model, k=settings: m.generate(ids, **k),
            }
            figures: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
            for turn in range(rounds + 1):
                for name, way in ways.items():
                    figure = measure(model, way)
                    if turn:  # not the first of each
                        figures[name].append(figure)
            outside = {name: [f["outside_ms"] for f in found] for name, found in figures.items()}
            results.append(
                {
                    "case": f"[{batch}, {canvas_length}, {vocabulary}], {dtype}",
                    "forwards": {name: sorted({f["forwards"] for f in found}) for name, found in figures.items()},
                    "model_ms": {name: _spread([f["model_ms"] for f in found]) for name, found in figures.items()},
                    "outside_ms": {name: _spread(values) for name, values in outside.items()},
                    "times_faster": _spread(
                        [b / a for a, b in zip(outside["fused"], outside["original"], strict=True)]
                    ),
                    "rounds": rounds,
                    "memory": {name: memory(way, lambda: None) for name, way in ways.items()},
                }
            )
    return results


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": quantile(values, 0.5), "p20": quantile(values, 0.2), "p80": quantile(values, 0.8)}


def table_of(results: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="DiffusionGemma's generate, one canvas: milliseconds a step", title_justify="left")
    columns = (
        "",
        "forwards",
        "model",
        "outside, fused",
        "outside, original",
        "times faster",
        "fused MB",
        "original MB",
    )
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for result in results:
        spread = [
            f"{s['median']:.1f} ({s['p20']:.1f} - {s['p80']:.1f})"
            for s in (*result["outside_ms"].values(), result["times_faster"])
        ]
        forwards = " / ".join(str(n) for found in result["forwards"].values() for n in found)
        megabytes = [f"{taken['torch_peak_bytes'] / 1e6:.0f}" for taken in result["memory"].values()]
        model = f"{result['model_ms']['fused']['median']:.1f}"
        table.add_row(result["case"], forwards, model, *spread, *megabytes)
    return table


def diffusion_gemma(
    threads: Annotated[int | None, typer.Option(min=1, help="Default: torch's.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Generations of each.")] = ROUNDS,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Times a denoising step of DiffusionGemma's generate, fused against the original, on a tiny random model."""
    try:
        from dlm_samplers.integrations.transformers import diffusion_gemma as _  # noqa: F401
    except ImportError as error:
        raise typer.BadParameter(str(error)) from None
    if threads is not None:
        torch.set_num_threads(threads)
    results = run(rounds)
    console().print(table_of(results))
    if json_file is not None:
        write_json(json_file, {"schema": SCHEMA, "environment": environment(), "results": results})
