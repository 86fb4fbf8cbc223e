"""LLaDA's sampler (arXiv:2502.09992, algorithms 4 and 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Noise = Callable[[int, tuple[int, ...]], Tensor]


@torch.no_grad()
def llada_generate(
    model: Callable[..., Any],
    prompt: Tensor,
    attention_mask: Tensor | None = None,
    *,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
    eos_id: int = 126081,
    eot_id: int = 126348,
    gumbel: Noise | None = None,
    order: Noise | None = None,
) -> Tensor:
    """Low-confidence or random remasking over blocks, one whole forward a step. int64 [B, P] -> int64 [B, P + gen_length].

    Follows the published code at temperature 0 token for token, with ties broken towards the lowest position; at
    temperature above 0 it draws from the same distribution (fp64 Gumbel noise). Where the published code crashes this does
    what it means: guidance without an attention mask runs.

    gumbel(step, shape [B, L, V]) and order(step, shape [B, L]) replace the noise, so that a faster sampler can be compared
    draw by draw.
    """
    if gen_length % block_length or steps % (gen_length // block_length):
        raise ValueError("block_length must divide gen_length, and the number of blocks must divide steps")
    if gumbel is None:
        gumbel = lambda step, shape: -torch.log(-torch.log(torch.rand(shape, dtype=torch.float64)))  # noqa: E731
    if order is None:
        order = lambda step, shape: torch.rand(shape)  # noqa: E731
    batch, prompt_length = prompt.shape
    x = torch.full((batch, prompt_length + gen_length), mask_id, dtype=torch.int64)
    x[:, :prompt_length] = prompt
    if attention_mask is not None:
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(batch, gen_length)], dim=1)
    is_prompt = x != mask_id
    blocks = gen_length // block_length
    steps_per_block = steps // blocks
    step = 0
    for block in range(blocks):
        start = prompt_length + block * block_length
        end = start + block_length
        masks = (x[:, start:end] == mask_id).sum(1)  # [B]
        for i in range(steps_per_block):
            logits = _logits(model, x, attention_mask, is_prompt, mask_id, cfg_scale)  # [B, L, V]
            if logits_eos_inf:
                logits[:, :, eos_id] = -torch.inf
            if temperature > 0:
                x0 = (logits.double() / temperature + gumbel(step, tuple(logits.shape))).argmax(-1)
            else:
                x0 = logits.argmax(-1)
            if confidence_eos_eot_inf:
                logits[:, :, [eos_id, eot_id]] = -torch.inf  # such a token keeps confidence 0, so it commits last
            if remasking == "low_confidence":
                confidence = logits.softmax(-1).gather(-1, x0[:, :, None])[:, :, 0]
            elif remasking == "random":
                confidence = order(step, tuple(x0.shape))
            else:
                raise NotImplementedError(remasking)
            confidence = confidence.masked_fill(x != mask_id, -torch.inf)
            confidence[:, end:] = -torch.inf  # later blocks are closed
            quota = masks // steps_per_block + (i < masks % steps_per_block)
            ranking = confidence.argsort(dim=1, descending=True, stable=True)
            for row in range(batch):
                commit = ranking[row, : quota[row]]
                x[row, commit] = x0[row, commit]
            step += 1
    return x


def _logits(
    model: Callable[..., Any],
    x: Tensor,
    attention_mask: Tensor | None,
    is_prompt: Tensor,
    mask_id: int,
    cfg_scale: float,
) -> Tensor:
    """Logits [B, L, V], guided when cfg_scale > 0: the unconditional half sees a masked prompt."""
    if cfg_scale == 0:
        return _call(model, x, attention_mask).clone()
    both = torch.cat([x, x.masked_fill(is_prompt, mask_id)])
    mask = None if attention_mask is None else attention_mask.repeat(2, 1)
    logits, unconditional = _call(model, both, mask).chunk(2)
    return unconditional + (cfg_scale + 1) * (logits - unconditional)


def _call(model: Callable[..., Any], x: Tensor, attention_mask: Tensor | None) -> Tensor:
    output = model(x) if attention_mask is None else model(x, attention_mask=attention_mask)
    return output if isinstance(output, Tensor) else output.logits
