"""The three samplers of Fast-dLLM for LLaDA (NVlabs/Fast-dLLM, llada/generate.py): change the import, keep the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.caches import Cache, DualCache, PrefixCache
from dlm_samplers.compat.blockwise import check_call, quota, run
from dlm_samplers.models import ModelSpec
from dlm_samplers.models.families import states_of
from dlm_samplers.policies import Factor, Policy, Threshold
from dlm_samplers.sampler import LLaDASampler, Sampler
from dlm_samplers.state import SamplerState


def generate(
    model: Callable[..., Any],
    prompt: Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    threshold: float | None = None,
    factor: float | None = None,
    step_callback: Callable[[int], None] | None = None,
    *,
    attention_mask: Tensor | None = None,
    spec: ModelSpec | None = None,
    seed: int = 0,
) -> tuple[Tensor, int]:
    """Drop-in for Fast-dLLM's `generate`: int64 [B, P] -> (int64 [B, P + gen_length], forwards) (arXiv:2505.22618).

    threshold: commit every position at least this confident; factor, which goes before it: the factor rule; neither: `steps`.
    attention_mask, spec, seed: of this library.

    At temperature 0 the tokens of a row are those of the published code given the same fp32 logits, up to ties in confidence,
    which go to the lowest position. The factor rule is the published one, with its step too far where all masks qualify but
    the last (`Factor(upstream_quirk=True)`). Differences:

    - Several rows: each commits and moves to its next block by itself. Upstream fails for them (factor: IndexError once a
      row is done with its block; dual cache: a shape mismatch), or waits for the slowest row. The forwards returned are those
      of the row with most.
    - Steps without a commit (more steps than tokens) are not run. steps < blocks * block_length with a cache works (upstream:
      IndexError where a block needs more forwards than its share of the steps).
    - The mask token is never generated and has no share in a confidence: upstream's are smaller by the probability that the
      model gives it, and with a threshold its loop never ends where that is the likeliest token.
    - `remasking="random"` goes with `steps` alone: upstream compares uniform random numbers with the threshold.
    - Rows may be padded on the left, with `attention_mask`; upstream's attention ignores it.
    - Noise is keyed by `seed`, row, position and step.
    """
    return generate_with(None, **locals())


def generate_with_prefix_cache(
    model: Callable[..., Any],
    prompt: Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    threshold: float | None = None,
    factor: float | None = None,
    step_callback: Callable[[int], None] | None = None,
    *,
    attention_mask: Tensor | None = None,
    spec: ModelSpec | None = None,
    seed: int = 0,
) -> tuple[Tensor, int]:
    """As `generate`, with `PrefixCache`. LLaDA's published code as it is, or another model that a cache goes with; `spec` says
    where its hidden states and head are, by default where LLaDA has them, or in `model` and `lm_head`. Upstream's modified
    model files are not needed."""
    return generate_with(PrefixCache(), **locals())


def generate_with_dual_cache(
    model: Callable[..., Any],
    prompt: Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    threshold: float | None = None,
    factor: float | None = None,
    step_callback: Callable[[int], None] | None = None,
    *,
    attention_mask: Tensor | None = None,
    spec: ModelSpec | None = None,
    seed: int = 0,
) -> tuple[Tensor, int]:
    """As `generate_with_prefix_cache`, with `DualCache`."""
    return generate_with(DualCache(), **locals())


def generate_with(
    cache: Cache | None,
    model: Callable[..., Any],
    prompt: Tensor,
    steps: int,
    gen_length: int,
    block_length: int,
    temperature: float,
    remasking: str,
    mask_id: int,
    threshold: float | None,
    factor: float | None,
    step_callback: Callable[[int], None] | None,
    attention_mask: Tensor | None,
    spec: ModelSpec | None,
    seed: int,
) -> tuple[Tensor, int]:
    """`generate` with any cache."""
    check_call(prompt, attention_mask, steps, gen_length, block_length, remasking, mask_id)
    policy: Policy
    if remasking == "random" and (threshold is not None or factor is not None):
        raise InvalidArgumentError("remasking must be 'low_confidence' with threshold or factor, got 'random'")
    if factor is not None:
        policy = Factor(factor, upstream_quirk=True)
    elif threshold is not None:
        policy = Threshold(threshold)
    else:
        policy = quota(remasking)
    if spec is None:
        states = {} if cache is None else states_of(model)
        spec = ModelSpec(mask_id=mask_id, **states)

    def on_step_end(_: Sampler, step: int, __: SamplerState) -> None:
        if step_callback is not None:
            step_callback(step)

    output = run(
        LLaDASampler(model, spec=spec, policy=policy, cache=cache),
        prompt,
        attention_mask=attention_mask,
        max_new_tokens=gen_length,
        block_length=block_length,
        steps=steps if policy.scheduled else None,
        temperature=temperature,
        seed=seed,
        callback_on_step_end=on_step_end,
    )
    return output.sequences, int(output.nfe.max()) if output.nfe.numel() else 0
