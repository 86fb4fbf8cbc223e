"""`diffusion_generate` of Dream and DiffuCoder: change the import, keep the call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.models import ModelSpec
from dlm_samplers.models.spec import DREAM
from dlm_samplers.policies import AncestralUnmask, FixedQuota, Policy
from dlm_samplers.sampler import DreamSampler, Sampler
from dlm_samplers.schedules import TimeGrid
from dlm_samplers.state import SamplerState

DEFAULTS: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": None,
    "top_k": None,
    "max_length": 20,
    "max_new_tokens": None,
    "eps": 1e-3,
    "steps": 512,
    "alg": "origin",
    "alg_temp": None,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "output_history": False,
    "mask_token_id": None,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}

ORDERS = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}


@dataclass
class DreamModelOutput:
    """sequences: int64 [B, L]; history: the canvas after each step, or None."""

    sequences: Tensor
    history: tuple[Tensor, ...] | None = None


def diffusion_generate(
    model: Callable[..., Any],
    inputs: Tensor,
    generation_config: Any = None,
    *,
    attention_mask: Tensor | None = None,
    generation_tokens_hook_func: Callable[[int | None, Tensor, Tensor | None], Tensor] | None = None,
    generation_logits_hook_func: Callable[[int, Tensor, Tensor], Tensor] | None = None,
    seed: int = 0,
    sampler: Callable[[int, Policy], Sampler] | None = None,
    **kwargs: Any,
) -> Tensor | DreamModelOutput:
    """Drop-in for Dream's `model.diffusion_generate(inputs, ...)`: int64 [B, P] -> int64 [B, L] or DreamModelOutput.

    Keywords and defaults are upstream's (`DEFAULTS`); they override `generation_config`'s fields, and unknown ones raise.
    At temperature 0 the tokens are those of the published code given the same fp32 logits, up to ties, which go to the
    lowest position. Differences:

    - Every row follows its own number of masks (upstream: the batch mean, which overwrites given tokens with masks).
    - The mask token is never generated (upstream may return masks).
    - Noise is keyed by `seed`, row, position and, with "maskgit_plus", step, so a row's tokens do not depend on the batch;
      "origin" is equal in distribution.
    - A step that commits nothing in a row costs it no forward, unless a logits hook has to be called.
    - NaN logits raise (upstream falls back to greedy without a word).
    - Padding must be on the left; rows are computed without it, positions start at 0, as upstream's position ids do.
    - The tokens hook receives logits=None (upstream: the logits of the step). It must return a canvas of x's shape.

    sampler: f(mask id, the policy that `alg`, `alg_temp` and `eps` ask for) -> the sampler to use, whose policy may be another.
        `steps` is for policies on a schedule.
    """
    options = _options(model, generation_config, kwargs)
    mask_id = options["mask_token_id"]
    length = inputs.shape[1]
    new_tokens = options["max_new_tokens"]
    if new_tokens is None:
        new_tokens = options["max_length"] - length
    if new_tokens < 0:
        raise InvalidArgumentError(
            f"max_length = {options['max_length']} is shorter than the prompt of {length} tokens"
        )
    copies = options["num_return_sequences"]
    if copies > 1:
        inputs = inputs.repeat_interleave(copies, dim=0)
        attention_mask = None if attention_mask is None else attention_mask.repeat_interleave(copies, dim=0)
    grid = TimeGrid(options["eps"])
    policy: Policy
    if options["alg"] == "origin":
        policy = AncestralUnmask(grid)
    elif options["alg"] in ORDERS:
        policy = FixedQuota(ORDERS[options["alg"]], grid, order_temperature=options["alg_temp"] or 0.0)  # type: ignore[arg-type]
    else:
        raise InvalidArgumentError(f"alg must be 'origin' or one of {sorted(ORDERS)}, got {options['alg']!r}")
    if sampler is None:
        chosen: Sampler = DreamSampler(model, spec=ModelSpec(mask_id=mask_id, **DREAM), policy=policy)
    else:
        chosen = sampler(mask_id, policy)
    editable = None
    if attention_mask is not None:
        if length and not bool(attention_mask[:, -1].all()):
            raise InvalidArgumentError("attention_mask: pad the prompts on the left")
        editable = (inputs == mask_id) & attention_mask.bool()
    steps_taken = 0

    def process_logits(tokens: Tensor, logits: Tensor) -> Tensor:
        assert generation_logits_hook_func is not None
        return generation_logits_hook_func(steps_taken, tokens, logits)

    def on_step_end(_: Sampler, step: int, state: SamplerState) -> None:
        nonlocal steps_taken
        steps_taken = step + 1
        if generation_tokens_hook_func is not None:
            state.tokens.copy_(generation_tokens_hook_func(step, state.tokens, None))

    if generation_tokens_hook_func is not None:
        inputs = generation_tokens_hook_func(
            None, torch.nn.functional.pad(inputs, (0, new_tokens), value=mask_id), None
        )[:, :length]
    output = chosen.generate(
        inputs,
        attention_mask=attention_mask,
        editable=editable,
        max_new_tokens=new_tokens,
        steps=options["steps"] if chosen.policy.scheduled else None,
        temperature=options["temperature"],
        top_k=options["top_k"] or 0,
        top_p=1.0 if options["top_p"] is None else options["top_p"],
        seed=seed,
        logits_processor=process_logits if generation_logits_hook_func is not None else None,
        callback_on_step_end=on_step_end,
        return_history=options["output_history"],
    )
    if attention_mask is not None:
        for canvas in (output.sequences, *output.history):
            canvas[:, :length] = torch.where(attention_mask.bool(), canvas[:, :length], inputs)  # the caller's padding
    if not options["return_dict_in_generate"]:
        return output.sequences
    return DreamModelOutput(output.sequences, tuple(output.history[1:]) if options["output_history"] else None)


def _options(model: Any, generation_config: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(kwargs) - set(DEFAULTS))
    if unknown:
        raise InvalidArgumentError(f"unknown arguments {unknown}; allowed: {sorted(DEFAULTS)}")
    options = dict(DEFAULTS)
    if generation_config is not None:
        options |= {name: getattr(generation_config, name) for name in DEFAULTS if hasattr(generation_config, name)}
    options |= kwargs
    if options["mask_token_id"] is None:
        options["mask_token_id"] = ModelSpec.of(model).mask_id
    return options
