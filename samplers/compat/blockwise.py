"""What the swaps of LLaDA's `generate` and its descendants share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.output import SamplerOutput
from dlm_samplers.policies import FixedQuota
from dlm_samplers.sampler import Sampler


def check_call(
    prompt: Tensor,
    attention_mask: Tensor | None,
    steps: int,
    gen_length: int,
    block_length: int,
    remasking: str,
    mask_id: int,
) -> None:
    """Raises NotImplementedError for another `remasking`, as upstream, and InvalidArgumentError for what cannot be met."""
    if remasking not in ("low_confidence", "random"):
        raise NotImplementedError(remasking)
    if gen_length and (gen_length % block_length or steps % (gen_length // block_length)):
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


def quota(remasking: str) -> FixedQuota:
    """The policy that a checked `remasking` names."""
    return FixedQuota("random" if remasking == "random" else "confidence")


def run(sampler: Sampler, prompt: Tensor, **settings: Any) -> SamplerOutput:
    """`sampler.generate(prompt, ...)`, with the caller's own tokens in the columns of padding."""
    output = sampler.generate(prompt, **settings)
    output.sequences[:, : prompt.shape[1]] = prompt
    return output
