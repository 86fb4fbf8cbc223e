"""The methods that `accelerate` gives a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from dlm_samplers.compat import dream
from dlm_samplers.composition import Composition
from dlm_samplers.integrations.transformers.generate import DiffusionGenerateOutput, described, generate_with
from dlm_samplers.models import ModelMismatchError, ModelSpec
from dlm_samplers.models.adapter import device_of
from dlm_samplers.models.block_mask import attention_of
from dlm_samplers.policies import Policy
from dlm_samplers.sampler import Sampler


def model_methods(
    model: Any, parts: Composition, spec: ModelSpec | None, mask_id: int | None, eos_id: int | None
) -> dict[str, Callable[..., Any]]:
    """{name: f(model, ...)} of what to replace, once the parts are known to go with the model. Calls the model where it says
    that its attention is block-causal."""
    spec = described(model, spec=spec, mask_id=mask_id, eos_id=eos_id)
    check_blocks(parts.sampler(model, spec))

    def generate(
        model: Any,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        streamer: Any = None,
        **kwargs: Any,
    ) -> Tensor | DiffusionGenerateOutput:
        hooks = (logits_processor, stopping_criteria, streamer)
        return generate_with(model, parts, spec, inputs, generation_config, *hooks, kwargs)

    generate.__doc__ = "See dlm_samplers.integrations.transformers.generate."
    if not spec.logit_shift:
        return {"generate": generate}

    def diffusion_generate(model: Any, inputs: Tensor, generation_config: Any = None, **kwargs: Any) -> Any:
        """See dlm_samplers.compat.dream.diffusion_generate. A policy given to `accelerate` goes before `alg`."""

        def build(mask: int, policy: Policy) -> Sampler:
            return parts.sampler(model, replace(spec, mask_id=mask), default=policy)

        return dream.diffusion_generate(model, inputs, generation_config, sampler=build, **kwargs)

    return {"generate": generate, "diffusion_generate": diffusion_generate}


def check_blocks(sampler: Sampler) -> None:
    """Raises ModelMismatchError where the description says block-causal attention and the model attends otherwise."""
    spec, adapter = sampler.spec, sampler.adapter
    if spec.block_length is None:
        return
    vocabulary, device = spec.vocab_size or spec.mask_id, device_of(adapter.model)
    found = attention_of(lambda tokens: adapter.forward(tokens.to(device), None), spec.block_length, vocabulary)
    if found != "block_causal":
        raise ModelMismatchError(
            f"{type(adapter.model).__name__}: under a mask of blocks of {spec.block_length} (attention_mask="
            f"{spec.attention_mask!r}) its attention is {found}, not block-causal; pass spec=ModelSpec(...) as it is"
        )
