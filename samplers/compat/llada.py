"""`generate` of the LLaDA repository (ML-GSAI/LLaDA, generate.py): change the import, keep the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dlm_kernels import TokenScores
from dlm_samplers.compat.blockwise import check_call, quota, run
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.models import ModelSpec
from dlm_samplers.sampler import LLaDASampler
from dlm_samplers.state import SamplerState

EOS_ID = 126081
EOT_ID = 126348


def generate(
    model: Callable[..., Any],
    prompt: Tensor,
    attention_mask: Tensor | None = None,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int = 126336,
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
    *,
    seed: int = 0,
) -> Tensor:
    """Drop-in for LLaDA's `generate`: int64 [B, P] -> int64 [B, P + gen_length], not trimmed.

    At temperature 0 the tokens are those of the published code given the same fp32 logits, up to ties in confidence, which
    go to the lowest position (upstream leaves them to `torch.topk`). Differences:

    - cfg_scale > 0 without attention_mask works (upstream: UnboundLocalError).
    - Steps in which nothing is committed (steps > gen_length) are not run.
    - Mask tokens inside the prompt raise InvalidArgumentError: upstream lets them compete with the block while its budget
      counts the block alone, and returns with masks left. Use `LLaDASampler(...).generate(editable=...)` to infill.
    - gen_length=0 returns the prompt (upstream: ZeroDivisionError).
    - confidence_eos_eot_inf holds at any temperature (upstream: EOS only at temperature 0, by aliasing).
    - Confidence is computed in fp32 (upstream: the model's dtype; in bf16 it has a few hundred distinct values, so ties
      decide the order).
    - Noise is keyed by `seed`, row, position and step instead of torch's global generator, so a row's tokens do not depend
      on the batch.
    - Padding must be on the left (upstream takes it on the right and continues after it); a row is computed without its
      padding, at columns 0, 1, ..., which is the same for rotary positions.
    """
    check_call(prompt, attention_mask, steps, gen_length, block_length, remasking, mask_id)
    deferred = (EOS_ID, EOT_ID) if confidence_eos_eot_inf else ()
    sampler = _Published(
        model,
        spec=ModelSpec(mask_id=mask_id, suppressed_ids=(EOS_ID,) if logits_eos_inf else ()),
        policy=quota(remasking),
        deferred_ids=deferred,
    )
    return run(
        sampler,
        prompt,
        attention_mask=attention_mask,
        max_new_tokens=gen_length,
        block_length=block_length,
        steps=steps,
        temperature=temperature,
        cfg_scale=cfg_scale,
        seed=seed,
    ).sequences


class _Published(LLaDASampler):
    """The published rule: the mask token takes part like any other, and deferred ids have confidence 0."""

    def __init__(self, *args: Any, deferred_ids: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deferred_ids = deferred_ids

    def score(self, evaluation: Evaluation, state: SamplerState, scoring: dict[str, Any]) -> TokenScores:
        scores = super().score(evaluation, state, scoring)
        if not self.deferred_ids:
            return scores
        # Without the deferred ids the winner among the others is unchanged, so this is its confidence.
        without = [*self.spec.never, *self.deferred_ids]
        rest = super().score(evaluation, state, {**scoring, "suppress_ids": without})
        deferred = scores.token != rest.token
        return scores._replace(confidence=rest.confidence.masked_fill(deferred, 0.0))
