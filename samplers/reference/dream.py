"""Dream's sampler (arXiv:2508.15487)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlm_samplers.reference.llada import Noise


@torch.no_grad()
def dream_generate(
    model: Callable[..., Any],
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    steps: int = 512,
    eps: float = 1e-3,
    alg: str = "origin",
    alg_temp: float | None = None,
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    mask_id: int = 151666,
    gumbel: Noise | None = None,
    order: Noise | None = None,
) -> Tensor:
    """Denoising on a time grid over the whole canvas. int64 [B, P] -> int64 [B, P + max_new_tokens].

    Follows the published code at temperature 0 token for token when all rows hold the same number of masks, with ties
    broken towards the lowest position. With different numbers of masks every row follows its own count here, where the
    published code takes the batch mean and overwrites given tokens.

    gumbel(step, shape [B, L, V]) and order(step, shape [B, L]) replace the noise of tokens and of positions (uniforms in
    [0, 1) for alg "origin"; Gumbel noise for alg_temp > 0).
    """
    if gumbel is None:
        gumbel = lambda step, shape: -torch.log(-torch.log(torch.rand(shape, dtype=torch.float64)))  # noqa: E731
    if order is None:
        uniform = alg == "origin"
        order = lambda step, shape: torch.rand(shape) if uniform else gumbel(step, shape)  # noqa: E731
    batch = input_ids.shape[0]
    x = torch.nn.functional.pad(input_ids, (0, max_new_tokens), value=mask_id)
    if attention_mask is not None and bool((attention_mask == 0).any()):
        attention_mask = torch.nn.functional.pad(attention_mask, (0, max_new_tokens), value=1)
        position_ids = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
        attention_mask = attention_mask.bool()
        call: dict[str, Any] = {
            "attention_mask": attention_mask[:, None, :, None] & attention_mask[:, None, None, :],
            "position_ids": position_ids,
        }
    else:
        call = {"attention_mask": "full", "position_ids": None}
    t = torch.linspace(1, eps, steps + 1)
    for i in range(steps):
        last = i == steps - 1
        masked = x == mask_id
        output = model(x, **call)
        logits = output if isinstance(output, Tensor) else output.logits
        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)  # output i - 1 predicts position i
        p = _filtered(logits, temperature, top_p, top_k)  # [B, L, V]
        x0 = (p.double().log() + gumbel(i, tuple(p.shape))).argmax(-1) if temperature > 0 else p.argmax(-1)
        share = 1 - t[i + 1] / t[i]
        if alg == "origin":
            commit = masked if last else masked & (order(i, tuple(x.shape)) < share)
            x = torch.where(commit, x0, x)
            continue
        if alg == "maskgit_plus":
            score = p.gather(-1, x0[:, :, None])[:, :, 0]
        elif alg == "topk_margin":
            best = p.topk(2, dim=-1).values
            score = best[:, :, 0] - best[:, :, 1]
        elif alg == "entropy":
            score = (p * torch.log(p + 1e-10)).sum(-1)
        else:
            raise ValueError(f"unknown alg {alg!r}")
        if alg_temp:
            score = score / alg_temp + order(i, tuple(x.shape))  # Gumbel top-k: draws without replacement
        ranking = score.masked_fill(~masked, -torch.inf).argsort(dim=1, descending=True, stable=True)
        for row in range(batch):
            left = int(masked[row].sum())
            commit = ranking[row, : left if last else int(torch.tensor(float(left)) * share)]
            x[row, commit] = x0[row, commit]
    return x


def _filtered(logits: Tensor, temperature: float, top_p: float | None, top_k: int | None) -> Tensor:
    """Probabilities after temperature, then the nucleus, then top-k, in Dream's order. [..., V] -> [..., V]."""
    if temperature > 0:
        logits = logits / temperature
    if top_p is not None and top_p < 1:
        ordered, indices = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[..., 0] = 0
        logits = logits.masked_fill((before > top_p).gather(-1, indices.argsort(-1)), -torch.inf)
    if top_k:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    return logits.softmax(-1)
