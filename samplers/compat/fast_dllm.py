"""The three samplers of Fast-dLLM v1 for LLaDA (NVlabs/Fast-dLLM, llada/generate.py): change the import, keep the call.

At temperature 0 the tokens are those of the published code given the same logits, up to ties in confidence, which go to the
lowest position. Differences, where upstream is wrong or cannot:

- Rows are independent: each has its own prefix, block and end, so a batch gives what its rows give alone (upstream: the dual
  cache mixes the rows' columns, and the factor rule raises IndexError as soon as one row has filled its block before another).
- `attention_mask` hides padding, on the left (upstream: the model's attention drops its mask, so padding is attended to).
- The mask token is never generated (upstream commits it, and never ends where the model insists on it).
- The caches go through transformers' attention interface and need no changed model file. A model without it raises
  InvalidArgumentError, `generate` takes any.
- Noise is keyed by `seed`, row, position and, where the choice looks at tokens, step, instead of torch's generator.
- A step that commits nothing is not run, and not counted. Confidence is computed in fp32 (upstream: fp64).
- `remasking="random"` goes with a quota alone (upstream: random numbers against a threshold).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.caches import Cache, DualCache, PrefixCache
from dlm_samplers.models import ModelSpec
from dlm_samplers.policies import Factor, FixedQuota, Policy, Threshold
from dlm_samplers.recognise import states_of
from dlm_samplers.sampler import LLaDASampler


def generate(
    model: Any,
    prompt: Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    threshold: float | None = None,
    factor: float | None = None,
    *,
    attention_mask: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, int]:
    """Without a cache: int64 [B, P] -> (int64 [B, P + gen_length], forwards).

    threshold, factor: commit what is sure (`Threshold`, `Factor`); with neither, `steps` spread over the blocks.
    """
    call = (steps, gen_length, block_length, temperature, remasking, mask_id, threshold, factor)
    return _run(model, prompt, *call, attention_mask=attention_mask, seed=seed, cache=None)


def generate_with_prefix_cache(
    model: Any,
    prompt: Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    threshold: float | None = None,
    factor: float | None = None,
    *,
    attention_mask: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, int]:
    """As `generate`; inside a block its prefix's keys and values are kept (`PrefixCache`)."""
    call = (steps, gen_length, block_length, temperature, remasking, mask_id, threshold, factor)
    return _run(model, prompt, *call, attention_mask=attention_mask, seed=seed, cache=PrefixCache())


def generate_with_dual_cache(
    model: Any,
    prompt: Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    threshold: float | None = None,
    factor: float | None = None,
    *,
    attention_mask: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, int]:
    """As `generate`; inside a block all other keys and values are kept (`DualCache`)."""
    call = (steps, gen_length, block_length, temperature, remasking, mask_id, threshold, factor)
    return _run(model, prompt, *call, attention_mask=attention_mask, seed=seed, cache=DualCache())


def _run(
    model: Any,
    prompt: Tensor,
    steps: int,
    gen_length: int,
    block_length: int,
    temperature: float,
    remasking: str,
    mask_id: int,
    threshold: float | None,
    factor: float | None,
    *,
    attention_mask: Tensor | None,
    seed: int,
    cache: Cache | None,
) -> tuple[Tensor, int]:
    if remasking not in ("low_confidence", "random"):
        raise NotImplementedError(remasking)
    if gen_length % block_length or steps % max(gen_length // block_length, 1):
        raise InvalidArgumentError(
            f"block_length must divide gen_length and the number of blocks must divide steps; got gen_length={gen_length}, "
            f"block_length={block_length}, steps={steps}"
        )
    given = torch.ones_like(prompt, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if prompt.shape[1] and not bool(given[:, -1].all()):
        raise InvalidArgumentError("attention_mask: pad the prompts on the left")
    if bool(((prompt == mask_id) & given).any()):
        raise InvalidArgumentError(
            "prompt holds mask tokens; use LLaDASampler(...).generate(editable=...) to fill blanks"
        )
    policy: Policy = FixedQuota("confidence" if remasking == "low_confidence" else "random")
    if factor is not None or threshold is not None:
        if remasking == "random":
            raise InvalidArgumentError("remasking must be 'low_confidence' with threshold or factor, got 'random'")
        # As upstream, a factor goes before a threshold.
        policy = (
            Threshold(threshold)
            if factor is None and threshold is not None
            else Factor(factor or 0.0, upstream_quirk=True)
        )
    spec = ModelSpec(mask_id=mask_id, **({} if cache is None else states_of(model)))
    output = LLaDASampler(model, spec=spec, policy=policy, cache=cache).generate(
        prompt,
        attention_mask=attention_mask,
        max_new_tokens=gen_length,
        block_length=block_length,
        steps=steps if policy.scheduled else None,
        temperature=temperature,
        seed=seed,
    )
    sequences = output.sequences
    sequences[:, : prompt.shape[1]] = prompt  # the caller's padding tokens
    return sequences, int(output.nfe.max()) if len(output.nfe) else 0
