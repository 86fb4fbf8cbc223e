"""`dlm-bench roofline`: bytes, operations and expected times of every op on current GPUs. Arithmetic, no measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dlm_kernels.roofline import Traffic, bytes_moved

BF16, FP64 = 2, 8
BLOCK = 32
BATCHES = (1, 16)


class Device(NamedTuple):
    """Peaks as the vendor states them, dense."""

    name: str
    bandwidth: float  # bytes/s
    matrix: float  # bf16 operations/s of the matrix units
    vector: float  # fp32 operations/s of the rest
    source: str


DEVICES = (
    Device("A100-80", 2.0e12, 312e12, 19.5e12, "NVIDIA A100 datasheet, 80 GB SXM"),
    Device("H100 SXM", 3.35e12, 989e12, 67e12, "NVIDIA H100 datasheet, SXM"),
    Device("H200", 4.8e12, 989e12, 67e12, "NVIDIA H200 datasheet, SXM"),
    Device("B200", 8.0e12, 2250e12, 80e12, "NVIDIA Blackwell architecture brief, HGX B200, per GPU"),
    Device("MI300X", 5.3e12, 1307e12, 163.4e12, "AMD Instinct MI300X datasheet"),
)


class Model(NamedTuple):
    """What of a model the ops see."""

    name: str
    vocabulary: int
    width: int | None  # of the hidden states; None where it is not public
    length: int  # canvas
    open: int  # positions of a canvas that a step scores
    masked: bool  # absorbing state; False: uniform


MODELS = (
    Model("LLaDA-8B", 126464, 4096, 256, BLOCK, True),
    Model("Dream-7B", 151936, 3584, 256, BLOCK, True),
    Model("DiffusionGemma", 262144, None, 256, 256, False),
)


def expected(traffic: Traffic, device: Device) -> tuple[float, str]:
    """Seconds, and which of memory, matrix units and vector units takes them: each at its peak and all at once."""
    times = {
        "memory": traffic.bytes / device.bandwidth,
        "matrix": traffic.matrix_flops / device.matrix,
        "vector": traffic.flops / device.vector,
    }
    slowest = max(times, key=lambda name: times[name])
    return times[slowest], slowest


def workloads(model: Model, batch: int) -> Iterator[tuple[str, str, Traffic]]:
    """(op, what it works on, traffic) of every op on this model's shapes, logits in bf16."""
    scored, canvas = batch * model.open, {"batch": batch, "length": model.length}
    logits = {"vocabulary": model.vocabulary, "itemsize": BF16}

    def one(op: str, what: str, **shape: Any) -> tuple[str, str, Traffic]:
        return op, what, bytes_moved(op, **shape)

    yield one("score_tokens", f"{scored} rows, greedy", rows=scored, **logits)
    yield one("score_tokens", f"{scored} rows, temperature 1", rows=scored, **logits, sampled=True)
    if model.width is not None:
        yield one("score_hidden", f"{scored} rows, D = {model.width}", rows=scored, dimension=model.width, **logits)
    if model.masked:
        eligible = {"eligible": scored, "committed": 2 * batch}
        yield one("denoise_step_", f"{scored} masked of {batch * model.length}", **canvas, **eligible, **logits)
        yield one("absorbing_step_", f"{2 * batch} leave the mask", **canvas, filled=2 * batch, remasked=0, **logits)
        yield one("score_entropy_step_", f"{scored} masked", **canvas, movable=scored, changed=2 * batch, **logits)
    else:
        yield one("uniform_step_", f"{scored} positions, all change", **canvas, changed=scored, **logits)
        yield one("score_entropy_step_", f"{scored} positions", **canvas, movable=scored, changed=2 * batch, **logits)
    yield one("topk_kl", f"{scored} rows, k = 8", rows=scored, **logits, k=8, before=8)
    yield one("select_positions", "canvas", **canvas)
    yield one("commit_", f"{2 * batch} positions", **canvas, selected=2 * batch)
    yield one("revoke_", f"{batch} positions", **canvas, revoked=batch)
    yield one("keyed_uniform", "canvas", count=batch * model.length)
    yield one("rows_changed", "canvas", **canvas)


def independent(batch: int) -> Iterator[tuple[str, str, Traffic]]:
    """Ops that see no vocabulary of these models: features, cache rows and embeddings, bf16."""
    rows = batch * BLOCK
    yield (
        "cosine_rows",
        f"{batch * 256} rows, D = 4,096",
        bytes_moved("cosine_rows", rows=batch * 256, dimension=4096, itemsize=BF16),
    )
    yield "gather_rows", f"{rows} rows of 4,096", bytes_moved("gather_rows", rows=rows, width=4096, itemsize=BF16)
    yield "scatter_rows_", f"{rows} rows of 4,096", bytes_moved("scatter_rows_", rows=rows, width=4096, itemsize=BF16)
    yield (
        "nearest_embedding",
        f"{batch * 64} vectors, D = 128, V = 30,522",
        bytes_moved("nearest_embedding", rows=batch * 64, dimension=128, vocabulary=30522, itemsize=BF16),
    )
    shape = {"batch": batch, "length": 256, "dimension": 768, "itemsize": BF16}
    yield "gaussian_step_", "256 positions a row, D = 768", bytes_moved("gaussian_step_", **shape, second_order=True)


def published_step(positions: int, vocabulary: int, itemsize: int, sampled: bool) -> int:
    """Bytes of LLaDA's step with its fp64 softmax, each tensor op reading and writing its operands once.

    Greedy: argmax reads the logits; the cast to fp64 reads and writes; softmax reads and writes fp64.
    Sampled, before that: a cast to fp64; exp reads and writes; rand writes; log, negation and power read and write; the
    division reads two and writes one; argmax reads.
    """
    greedy = itemsize + (itemsize + FP64) + 2 * FP64
    noise = (itemsize + FP64) + 2 * FP64 + FP64 + 3 * 2 * FP64 + 3 * FP64 + FP64
    per_logit = greedy if not sampled else greedy - itemsize + noise
    return positions * vocabulary * per_logit


def markdown() -> str:
    """docs/roofline.md."""
    return "\n".join([INTRODUCTION, _devices(), *_models(), _independent(), _published(), ""])


INTRODUCTION = """# What the ops cost at least

Written by `dlm-bench roofline --out docs/roofline.md`; a test keeps it current. **Everything on this page is computed,
nothing is measured**, and no kernel reaches it: it says what the best possible kernel would need, to judge a measured time by.

Formulas (`dlm_kernels/roofline.py`, one function per op, tested against hand counts and against the tensors that the operators
are given):

- bytes = what a kernel must read from and write to main memory, each once: logits V b a scored row (b bytes a logit), 24 bytes
  of statistics a row; tokens 8, flags 1, confidences 4 bytes a position; with noise 8 bytes of row id.
- operations: 7 per logit for the statistics; 33 more with noise (a quarter of a Philox call, two logarithms, what goes with
  them); an exponential or a logarithm counts as one. Matrix products 2 R V D, on the matrix units.
- expected time = max(bytes / bandwidth, operations / fp32 peak, matrix operations / bf16 peak). Launches (some microseconds
  each; scores are two of them on Triton and CUDA, and so is a whole step), caches, peaks that count fused multiply-adds twice,
  and exponentials at a quarter of their rate are left out: small ops cost what a launch costs, and noise costs more than it
  says here.
"""


def _devices() -> str:
    lines = ["## Peaks", "", "| GPU | TB/s | bf16 dense, TFLOP/s | fp32, TFLOP/s | source |", "|---|---|---|---|---|"]
    lines += [
        f"| {d.name} | {d.bandwidth / 1e12:g} | {d.matrix / 1e12:g} | {d.vector / 1e12:g} | {d.source} |"
        for d in DEVICES
    ]
    return "\n".join(lines) + "\n"


def _models() -> Iterator[str]:
    for model in MODELS:
        width = f", D = {model.width:,}" if model.width else ""
        yield f"## {model.name}: V = {model.vocabulary:,}{width}, canvas {model.length}, {model.open} positions scored, bf16\n"
        if model.width is None:
            yield "Without `score_hidden`: the width of its hidden states is not in the sources used here.\n"
        yield _table(lambda batch, model=model: workloads(model, batch))


def _independent() -> str:
    return "## Features, cache rows, embeddings, bf16\n\n" + _table(independent)


def _table(of_batch: Callable[[int], Iterator[tuple[str, str, Traffic]]]) -> str:
    names = " | ".join(device.name for device in DEVICES)
    lines = [f"| batch | op | on | MB | Mflop | {names} |", "|---|---|---|---|---|" + "---|" * len(DEVICES)]
    for batch in BATCHES:
        for op, what, traffic in of_batch(batch):
            flops = traffic.flops + traffic.matrix_flops
            times = " | ".join(_marked(*expected(traffic, device)) for device in DEVICES)
            lines.append(f"| {batch} | `{op}` | {what} | {_short(traffic.bytes)} | {_short(flops)} | {times} |")
    return "\n".join(
        [*lines, "", "Times in microseconds; * bound by matrix units, ^ by vector units, else by memory.", ""]
    )


def _marked(time: float, limit: str) -> str:
    return _microseconds(time) + {"memory": "", "matrix": "*", "vector": "^"}[limit]


def _microseconds(time: float) -> str:
    if time < 1e-8:
        return "<0.01"
    return f"{1e6 * time:.3g}" if time < 1e-3 else f"{1e6 * time:,.0f}"


def _short(count: float) -> str:
    """In millions."""
    return f"{count / 1e6:.3g}" if count < 1e9 else f"{count / 1e6:,.0f}"


def _published() -> str:
    """The published step beside ours, both in bytes."""
    per_logit = [published_step(1, 1, BF16, sampled) for sampled in (False, True)]
    lines = [
        "## The published step beside ours",
        "",
        "LLaDA's step scores every position of the canvas, with the softmax in fp64 that its successors use. Counting every",
        f"tensor operation (`published_step` in `benches/roofline.py`), it moves {per_logit[0]} bytes a logit greedy and",
        f"{per_logit[1]} with noise. `denoise_step_` reads the 2 bytes of each logit of the open block once.",
        "",
        "| model | batch | temperature | published, MB | ours, MB | ratio | by fewer positions | H100, published | ours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    h100 = next(device for device in DEVICES if device.name == "H100 SXM")
    for model in (model for model in MODELS if model.masked):
        for batch in BATCHES:
            for sampled in (False, True):
                theirs = published_step(batch * model.length, model.vocabulary, BF16, sampled)
                ours = bytes_moved(
                    "denoise_step_",
                    batch=batch,
                    length=model.length,
                    eligible=batch * model.open,
                    committed=2 * batch,
                    vocabulary=model.vocabulary,
                    itemsize=BF16,
                    sampled=sampled,
                )
                times = (theirs / h100.bandwidth, expected(ours, h100)[0])
                lines.append(
                    f"| {model.name} | {batch} | {int(sampled)} | {_short(theirs)} | {_short(ours.bytes)} "
                    f"| {theirs / ours.bytes:.0f}x | {model.length // model.open}x "
                    f"| {' | '.join(f'{_microseconds(t)} us' for t in times)} |"
                )
    return "\n".join(lines)
