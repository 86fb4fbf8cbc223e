"""`generate` of dKV-Cache for LLaDA (horseee/dKV-Cache): change the import, keep the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.caches import DelayedCache
from dlm_samplers.compat import llada
from dlm_samplers.compat.fast_dllm import generate_with
from dlm_samplers.models import ModelSpec


def generate(
    model: Callable[..., Any],
    tokenizer: Any,
    prompt: Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    enable_cache: bool = False,
    cache_reloading_step: int = 1,
    *,
    attention_mask: Tensor | None = None,
    spec: ModelSpec | None = None,
    seed: int = 0,
) -> Tensor:
    """Drop-in for dKV-Cache's `generate`: int64 [B, P] -> int64 [B, P + gen_length] (dKV-Cache, arXiv:2505.15781).

    Without `enable_cache` it is `compat.llada.generate`. With it, `DelayedCache(refresh=cache_reloading_step)`, on LLaDA's
    published code as it is or another model that a cache goes with.

    tokenizer: not used, as upstream.
    attention_mask, spec, seed: of this library. spec: where the hidden states and the head are; default: where LLaDA has
        them, or `model` and `lm_head`.

    Differences from upstream: rows may be padded on the left and may commit different positions (upstream's `view(B, -1)` needs
    equally many cached ones); cfg_scale with a cache raises InvalidArgumentError (upstream: NotImplementedError); the mask
    token is never generated under a cache; the LM head runs on the block's open positions alone.
    """
    if not enable_cache:
        return llada.generate(
            model,
            prompt,
            attention_mask,
            steps,
            gen_length,
            block_length,
            temperature,
            cfg_scale,
            remasking,
            mask_id,
            seed=seed,
        )
    if cfg_scale:
        raise InvalidArgumentError(f"cfg_scale must be 0 with enable_cache=True, got {cfg_scale}")
    tokens, _ = generate_with(
        DelayedCache(cache_reloading_step),
        model,
        prompt,
        steps,
        gen_length,
        block_length,
        temperature,
        remasking,
        mask_id,
        threshold=None,
        factor=None,
        step_callback=None,
        attention_mask=attention_mask,
        spec=spec,
        seed=seed,
    )
    return tokens
