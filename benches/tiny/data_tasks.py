"""Training batches for the `reasoning` models: rows of [prompt | generation region | PAD], left-aligned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlm_benches.tiny import vocab
from dlm_benches.tiny.tasks import TASKS, Ids, Rows

REGION = 32
LATER_EOS_WEIGHT = 0.1
"""The answer and the first EOS weigh 1; the EOS that fill the region after it, this much."""


@dataclass
class Batch:
    """What the loss needs: inputs and targets [B, L] int64, weights [B, L] float32, attention_mask [B, L] bool."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    attention_mask: Tensor | None


def canvas(rows: Rows, region: Ids) -> tuple[Ids, Ids]:
    """Complete rows [n, L] and each position's index in the generation region [n, L] (negative in the prompt,
    at least the region's size in the padding). region: [n] sizes."""
    length = int((rows.prompt_length + region).max())
    position = np.arange(length)
    relative = position - rows.prompt_length[:, None]
    answer = np.take_along_axis(rows.answer, np.clip(relative, 0, rows.answer.shape[1] - 1), axis=1)
    tokens = np.where(relative < rows.answer_length[:, None], answer, vocab.EOS)
    tokens = np.where(relative < region[:, None], tokens, vocab.PAD)
    prompt = np.pad(rows.prompt, ((0, 0), (0, max(0, length - rows.prompt.shape[1]))))[:, :length]
    return np.where(relative < 0, prompt, tokens), relative


def _stack(parts: list[Rows]) -> Rows:
    def padded(name: str) -> Ids:
        arrays = [getattr(part, name) for part in parts]
        width = max(a.shape[1] for a in arrays)
        return np.concatenate([np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=vocab.PAD) for a in arrays])

    return Rows(
        padded("prompt"),
        np.concatenate([part.prompt_length for part in parts]),
        padded("answer"),
        np.concatenate([part.answer_length for part in parts]),
    )


def draw_rows(rng: np.random.Generator, size: int, mix: Mapping[str, float]) -> Rows:
    """`size` training questions, tasks in proportion to `mix`."""
    names = list(mix)
    share = np.array([mix[name] for name in names], dtype=float)
    counts = rng.multinomial(size, share / share.sum())
    return _stack([TASKS[name].rows(rng, n, "train") for name, n in zip(names, counts, strict=True) if n])


def masked_batch(rng: np.random.Generator, size: int, mix: Mapping[str, float], tight: float) -> Batch:
    """A masked-diffusion batch: mask ratio uniform in (0.02, 1) per row, targets at masked positions only.

    tight: the probability that the whole batch has short regions (answer + 1 to 3 more); else 1 row in 5 has a
    region drawn from answer + 1 .. 32 and the others have 32.
    """
    rows = draw_rows(rng, size, mix)
    if rng.random() < tight:
        region = rows.answer_length + rng.integers(1, 4, size)
    else:
        short = rng.integers(rows.answer_length + 1, REGION + 1)
        region = np.where(rng.random(size) < 0.2, short, REGION)
    targets, relative = canvas(rows, region)
    inside = (relative >= 0) & (relative < region[:, None])
    masked = inside & (rng.random(targets.shape) < rng.uniform(0.02, 1.0, (size, 1)))
    weights = masked * np.where(relative > rows.answer_length[:, None], LATER_EOS_WEIGHT, 1.0)
    return Batch(
        torch.from_numpy(np.where(masked, vocab.MASK, targets)),
        torch.from_numpy(targets),
        torch.from_numpy(weights.astype(np.float32)),
        torch.from_numpy(relative < region[:, None]),
    )


def causal_batch(rng: np.random.Generator, size: int, mix: Mapping[str, float]) -> Batch:
    """A next-token batch on the same questions: targets are the answer and one EOS, shifted by one position."""
    rows = draw_rows(rng, size, mix)
    tokens, relative = canvas(rows, rows.answer_length + 1)
    inside = (relative >= 0) & (relative <= rows.answer_length[:, None])
    return Batch(
        torch.from_numpy(tokens[:, :-1].copy()),
        torch.from_numpy(tokens[:, 1:].copy()),
        torch.from_numpy(inside[:, 1:].astype(np.float32)),
        None,  # padding is on the right and attention is causal
    )
