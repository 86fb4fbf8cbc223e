"""Accuracy on held-out questions with a small self-contained sampler, and Wilson intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlm_benches.tiny import vocab
from dlm_benches.tiny.data_tasks import REGION
from dlm_benches.tiny.model import TinyAR, TinyDLM
from dlm_benches.tiny.tasks import TASKS, Item

EVAL_SEED = 1_000_003
Select = Callable[[Tensor], Tensor]
"""Which positions commit: confidence [B, L] (-1 where nothing is masked) -> bool [B, L]."""


@dataclass(frozen=True)
class Score:
    """k right of n, the Wilson 95% interval, and mean forwards a question."""

    accuracy: float
    low: float
    high: float
    n: int
    forwards: float

    def to_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion. Raises `ValueError` for n < 1."""
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    p, z2 = right / n, z * z
    centre, half = p + z2 / (2 * n), z * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    return max(0.0, (centre - half) / (1 + z2 / n)), min(1.0, (centre + half) / (1 + z2 / n))


def top_k(k: int) -> Select:
    """The k most confident positions of each row (k = 1: one token a forward)."""

    def select(confidence: Tensor) -> Tensor:
        values, index = confidence.topk(min(k, confidence.shape[1]), dim=1)
        return torch.zeros_like(confidence, dtype=torch.bool).scatter_(1, index, values >= 0)

    return select


def threshold(tau: float) -> Select:
    """Every position at or above tau, and the best one (Fast-dLLM, arXiv:2505.22618)."""
    best = top_k(1)
    return lambda confidence: (confidence >= tau) | best(confidence)


def factor(f: float) -> Select:
    """The n most confident for the largest n with (n + 1)(1 - c_n) < f, and the best one (Fast-dLLM, same paper)."""
    best = top_k(1)

    def select(confidence: Tensor) -> Tensor:
        values, index = confidence.sort(dim=1, descending=True)
        rank = torch.arange(1, values.shape[1] + 1)
        fits = ((rank + 1) * (1 - values) < f) & (values >= 0)
        count = torch.where(fits, rank, 0).amax(dim=1, keepdim=True)
        chosen = torch.zeros_like(confidence, dtype=torch.bool).scatter_(1, index, rank <= count)
        return (chosen & (confidence >= 0)) | best(confidence)

    return select


SETTINGS: dict[str, Select] = {
    "one_a_forward": top_k(1),
    "fixed_8": top_k(8),
    **{f"threshold_{tau}": threshold(tau) for tau in (0.7, 0.8, 0.9, 0.95, 0.99)},
    **{f"factor_{f}": factor(f) for f in (0.25, 0.5, 1.0)},
}


@torch.inference_mode()
def denoise(model: TinyDLM, prompts: list[list[int]], select: Select, *, region: int = REGION) -> tuple[Tensor, Tensor]:
    """Greedy answers [B, region] int64 and the forwards each row took [B] int64; fills the whole region."""
    config = model.config
    starts = torch.tensor([len(prompt) for prompt in prompts])
    length = int(starts.max()) + region
    tokens = torch.full((len(prompts), length), config.pad_token_id)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
        row[len(prompt) : len(prompt) + region] = config.mask_token_id
    real = torch.arange(length) < starts[:, None] + region
    forwards = torch.zeros(len(prompts), dtype=torch.int64)
    live = torch.arange(len(prompts))
    while len(live):
        logits = model(tokens[live], real[live]).logits
        logits[..., config.mask_token_id] = float("-inf")
        confidence, proposal = logits.softmax(dim=-1).max(dim=-1)
        chosen = select(confidence.masked_fill(tokens[live] != config.mask_token_id, -1.0))
        tokens[live] = torch.where(chosen, proposal, tokens[live])
        forwards[live] += 1
        live = live[(tokens[live] == config.mask_token_id).any(dim=1)]
    index = starts[:, None] + torch.arange(region)
    return tokens.gather(1, index), forwards


def held_out(name: str, n: int) -> list[Item]:
    """The first n test questions of a task; the same for every model and run."""
    return TASKS[name].sample(np.random.default_rng([EVAL_SEED, sorted(TASKS).index(name)]), n, "test")


def answer_of(generated: list[int]) -> list[int]:
    """Ids before the first EOS (all, where there is none)."""
    return generated[: generated.index(vocab.EOS)] if vocab.EOS in generated else generated


def score(items: list[Item], generated: Tensor, forwards: Tensor) -> Score:
    """Exact accuracy of generated rows [n, region], with the interval."""
    right = sum(
        TASKS[item.task].check(item.prompt, answer_of(row)) for item, row in zip(items, generated.tolist(), strict=True)
    )
    low, high = wilson(right, len(items))
    return Score(right / len(items), low, high, len(items), forwards.double().mean().item())


def evaluate(model: TinyDLM | TinyAR, n: int, select: Select | None = None, *, batch: int = 128) -> dict[str, Score]:
    """Score per task on n held-out questions each. select: for a `TinyDLM`; default one token a forward."""
    scores = {}
    for name in TASKS:
        items = held_out(name, n)
        parts = []
        for start in range(0, n, batch):
            prompts = [item.prompt for item in items[start : start + batch]]
            if isinstance(model, TinyAR):
                made = model.generate(prompts, REGION)
                parts.append((made.tokens, made.nfe))
            else:
                parts.append(denoise(model, prompts, select or top_k(1)))
        scores[name] = score(items, torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))
    return scores


@torch.inference_mode()
def text_bits(model: TinyDLM, stream: NDArray[np.int64], text_bytes: int, *, windows: int) -> dict[str, float]:
    """Held-out text in bits per byte, on evenly spaced windows of a token stream that encodes `text_bytes` bytes.

    bound: the masked-diffusion bound on -log p, mean over mask ratios t of (1 / t) * loss at the masked positions
    (MDLM, arXiv:2406.07524). masked: plain mean cross-entropy of masked tokens, mask ratio uniform.
    """
    rng, length = np.random.default_rng(EVAL_SEED), model.config.learned_positions
    start = np.linspace(0, len(stream) - length, windows).astype(np.int64)
    bound = masked_loss = masked_tokens = 0.0
    for index in np.array_split(np.arange(windows), max(1, windows // 32)):
        tokens = torch.from_numpy(stream[start[index][:, None] + np.arange(length)])
        ratio = torch.from_numpy((index + rng.random(len(index))) / windows)[:, None]  # stratified over (0, 1)
        masked = torch.from_numpy(rng.random(tokens.shape)) < ratio
        logits = model(tokens.masked_fill(masked, model.config.mask_token_id)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        loss = loss.view(tokens.shape).double() * masked
        bound += (loss / ratio).sum().item()
        masked_loss += loss.sum().item()
        masked_tokens += masked.sum().item()
    bits_per_byte = len(stream) / text_bytes / np.log(2)  # of a nat per token
    return {
        "bound_bits_per_byte": round(bound / (windows * length) * bits_per_byte, 4),
        "masked_bits_per_byte": round(masked_loss / masked_tokens * bits_per_byte, 4),
        "bytes": text_bytes,
        "tokens": len(stream),
        "windows": windows,
    }
