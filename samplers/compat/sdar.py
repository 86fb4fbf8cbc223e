"""`block_diffusion_generate` of the SDAR repository (JetAstra/SDAR, generate.py): change the import, keep the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError, TokenScores, select_positions
from dlm_samplers.composition import Composition
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.models import ModelSpec
from dlm_samplers.models.seen import Seen
from dlm_samplers.models.spec import BLOCK_CAUSAL
from dlm_samplers.policies import LowConfidenceDynamic
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping import StoppingRule

NEVER_SURE = 2.0
"""A threshold above every probability: the quota alone."""


def block_diffusion_generate(
    model: Any,
    prompt: Mapping[str, Tensor],
    mask_id: int,
    gen_length: int = 128,
    block_length: int = 8,
    denoising_steps: int = 8,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    remasking_strategy: str = "low_confidence_dynamic",
    confidence_threshold: float = 0.85,
    stopping_criteria_idx: Sequence[int] | None = None,
    *,
    seed: int = 0,
) -> Tensor:
    """Drop-in for SDAR's `block_diffusion_generate`: prompt["input_ids"] int64 [1, P] -> int64 [1, blocks * block_length].

    The tokens are those of the published code given the same logits and the same draws, up to ties, which go to the lowest
    position. Differences:

    - temperature=0 takes the likeliest token (upstream: division by 0).
    - The mask token is never generated (upstream may commit it, and leaves a block with masks once its steps are spent).
    - Noise is keyed by `seed`, position and step instead of torch's global generator.
    - A finished block's keys and values are computed with the first forward of the next block, not by one of their own. A model
      that no cache goes with is called without one, under block masks.
    - Mask tokens in the prompt raise InvalidArgumentError (upstream fills those of a begun block and leaves the others).

    Raises InvalidArgumentError for more than one row and for a strategy that upstream does not have.
    """
    input_ids = prompt["input_ids"]
    if input_ids.ndim != 2 or len(input_ids) != 1:
        raise InvalidArgumentError(f"prompt['input_ids'] must be [1, P], got {list(input_ids.shape)}")
    if bool((input_ids == mask_id).any()):
        raise InvalidArgumentError(
            "prompt holds mask tokens; use LLaDASampler(...).generate(editable=...) to fill blanks"
        )
    policies = {
        "low_confidence_dynamic": LowConfidenceDynamic(confidence_threshold, denoising_steps),
        "low_confidence_static": LowConfidenceDynamic(NEVER_SURE, denoising_steps),
        "sequential": _Sequential(NEVER_SURE, denoising_steps),
    }
    if remasking_strategy not in policies:
        raise InvalidArgumentError(f"remasking_strategy must be one of {sorted(policies)}, got {remasking_strategy!r}")
    spec = ModelSpec(
        mask_id=mask_id, block_length=block_length, **BLOCK_CAUSAL, **Seen.of(model).split("model", "lm_head")
    )
    stopping = [] if stopping_criteria_idx is None else [_StopTokens(tuple(stopping_criteria_idx))]
    sampler = Composition(policies[remasking_strategy], stopping=stopping).sampler(model, spec)
    length = input_ids.shape[1]
    whole = -(-(length + gen_length) // block_length) * block_length
    output = sampler.generate(
        input_ids,
        max_new_tokens=whole - length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    return output.sequences


class _Sequential(LowConfidenceDynamic):
    """The quota of each step from the left."""

    keyed_by_step = False

    def select(self, scores: TokenScores, state: SamplerState) -> Tensor:
        order = -state.column.float().expand_as(state.tokens)
        return select_positions(order, state.active, quota=self.quota(state))


@dataclass(frozen=True)
class _StopTokens(StoppingRule):
    """A row ends with the block in which one of the tokens stands; the masks after it stay."""

    tokens: tuple[int, ...]

    guarantee = Guarantee.TEXT_EXACT
    promise = "the block that ends the text is final, and what follows it is not asked for"

    def stop(self, state: SamplerState, spec: ModelSpec, evaluation: Evaluation) -> Tensor:
        there = torch.isin(state.tokens, torch.tensor(self.tokens, device=state.tokens.device))
        there &= state.column >= state.prompt_length[:, None]
        return there.any(-1) & ~(state.masked() & state.in_block).any(-1)
