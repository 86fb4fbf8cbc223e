"""`LLaDA2Pipeline` of diffusers on this library's sampler, for `accelerate`."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from diffusers.pipelines.llada2.pipeline_llada2 import LLaDA2PipelineOutput
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.composition import Composition
from dlm_samplers.evaluation import Evaluation
from dlm_samplers.integrations.diffusers.callback import StepCallback
from dlm_samplers.integrations.prompts import continuations, rows_of
from dlm_samplers.integrations.transformers.options import seed_of
from dlm_samplers.models import ModelMismatchError, ModelSpec
from dlm_samplers.models.adapter import Adapter, device_of
from dlm_samplers.models.block_mask import attention_of
from dlm_samplers.models.seen import Seen
from dlm_samplers.models.spec import BLOCK_CAUSAL
from dlm_samplers.policies import LowConfidenceDynamic
from dlm_samplers.remask import TokenEditing
from dlm_samplers.state import SamplerState
from dlm_samplers.stopping import EndOfText, StoppingRule

SIGNATURE = inspect.signature(LLaDA2Pipeline.__call__)
UNKNOWN = 2**31 - 1
"""No vocabulary's token."""


def pipeline_methods(
    pipe: Any, parts: Composition, spec: ModelSpec | None, mask_id: int | None, eos_id: int | None
) -> dict[str, Callable[..., Any]]:
    """{"__call__": f(pipe, ...)}, once the model is known to attend block-causally when it is asked to.

    The call has the pipeline's arguments and results; at temperature 0 the text is the pipeline's on a model that reads its
    masks as block-causal. Differences:

    - The model gets block masks, 4D. The pipeline's 2D mask means full attention to some models, and causal attention as soon
      as it holds a zero: `accelerate` finds that out and warns once.
    - A finished block's keys and values are kept (`cache`), no forward is run for a block without masks unless tokens may be
      edited, and a row that is finished leaves the batch.
    - A row of a batch is what it is alone: its blocks start at its first token and its padding is not computed (original:
      padding shifts its blocks and positions; rows that are full are edited as long as others are not).
    - The last block is generated whole and then cut, as the model's own code does (original: what is cut is hidden, but
      competes for the quota).
    - The mask token is never generated. After the end of text `sequences` hold end-of-text tokens (original: masks, or more
      text). An end-of-text token in the prompt does not keep a row from stopping.
    - Above temperature 0 draws are keyed by one number from `generator`, or from torch's: the same distribution, other draws.
    - A callback needs a single row. There are no progress bars.

    A policy given to `accelerate` goes before `threshold` and `num_inference_steps`, a `remask` before `editing_threshold`.
    """
    if not isinstance(pipe, LLaDA2Pipeline):
        raise InvalidArgumentError(f"{type(pipe).__name__} is not LLaDA2Pipeline, the one pipeline that is known here")
    if not isinstance(pipe.scheduler, BlockRefinementScheduler):
        raise InvalidArgumentError(
            f"scheduler must be a BlockRefinementScheduler, whose rule is known; got {type(pipe.scheduler).__name__}"
        )
    block_length = pipe.scheduler.config.block_length
    if spec is None:
        described = _describe(pipe, mask_id, eos_id)
    elif mask_id is None and eos_id is None:
        described = spec
    else:
        raise InvalidArgumentError("mask_id and eos_id belong inside spec when spec is given")
    described = _as_it_reads_masks(pipe.model, replace(described, block_length=block_length))
    parts.sampler(pipe.model, described)  # raises where they do not go together
    _report_flat_mask(pipe.model, described)

    @torch.no_grad()
    @functools.wraps(LLaDA2Pipeline.__call__)
    def call(self: Any, *arguments: Any, **kwargs: Any) -> Any:
        given = SIGNATURE.bind(self, *arguments, **kwargs)
        given.apply_defaults()
        del given.arguments["self"]
        return _call(self, parts, described, **given.arguments)

    return {"__call__": call}


def _describe(pipe: Any, mask_id: int | None, eos_id: int | None) -> ModelSpec:
    """LLaDA2's contract, but for the block. Without a mask token, which may come with the call, its id is `UNKNOWN`."""
    model = pipe.model
    mask_id = pipe.mask_token_id if mask_id is None else mask_id
    eos_id = pipe.eos_token_id if eos_id is None else eos_id
    if mask_id is None:
        mask_id = getattr(getattr(model, "config", None), "mask_token_id", None)
    known = UNKNOWN if mask_id is None else mask_id
    seen = Seen.of(model)
    # Published code would make a cache of the whole canvas in every forward.
    keywords = {"use_cache": False} if seen.takes("use_cache", by_name=True) else {}
    states = seen.split("model", "lm_head")
    return ModelSpec(mask_id=known, eos_id=eos_id, block_length=1, keywords=keywords, **BLOCK_CAUSAL, **states)


def _as_it_reads_masks(model: Any, spec: ModelSpec) -> ModelSpec:
    """The model's description with block masks as it reads them: bool ones, or ones that are added.

    Raises ModelMismatchError when its attention is block-causal under neither.
    """
    found = []
    for description in (spec, replace(spec, attention_mask="4d_block_additive")):
        adapter = Adapter(model, description)
        try:
            attention = _attention(lambda tokens, a=adapter: a.whole(tokens, None), model, spec)  # type: ignore[misc]
        except (RuntimeError, TypeError, ValueError) as error:
            attention = f"{type(error).__name__}: {error}"
        if attention == "block_causal":
            return description
        found.append(attention)
    raise ModelMismatchError(
        f"{type(model).__name__}: under a 4D mask of blocks of {spec.block_length} its attention is not block-causal: with a "
        f"bool mask {found[0]}, with an added one {found[1]}"
    )


def _report_flat_mask(model: Any, spec: ModelSpec) -> None:
    """Warns when the 2D mask of ones that the pipeline passes means something else to the model than blocks."""

    def forward(tokens: Tensor) -> Tensor:
        place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return model(tokens, attention_mask=torch.ones_like(tokens), position_ids=place).logits

    try:
        attention = _attention(forward, model, spec)
    except (RuntimeError, TypeError, ValueError) as error:
        warnings.warn(
            f"LLaDA2Pipeline passes a 2D attention mask, which {type(model).__name__} refuses ({error}). "
            "The accelerated pipeline passes a 4D one.",
            stacklevel=4,
        )
        return
    if attention != "block_causal":
        warnings.warn(
            f"LLaDA2Pipeline passes a 2D attention mask, which {type(model).__name__} reads as {attention} attention: its text "
            "is not that of the model's own block-causal generation. The accelerated pipeline's is.",
            stacklevel=4,
        )


def _attention(forward: Callable[[Tensor], Tensor], model: Any, spec: ModelSpec) -> str:
    assert spec.block_length is not None
    config = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None) or forward(torch.zeros(1, 1, dtype=torch.int64)).shape[-1]
    device = device_of(model)
    return attention_of(lambda tokens: forward(tokens.to(device)), spec.block_length, vocabulary)


@dataclass(frozen=True)
class PipelineEditing(TokenEditing):
    """Token editing as the pipeline has it: a block that is full only with the last of its steps gets no forward more."""

    denoising_steps: int = 32

    def rewrite(self, evaluation: Evaluation, chosen: Tensor, state: SamplerState) -> Tensor:
        edits = super().rewrite(evaluation, chosen, state)
        spent = state.active.any(-1) & (state.block_step + 1 >= self.denoising_steps)
        state.held = state.held & ~spent
        return edits


@dataclass(frozen=True)
class SettledEnd(StoppingRule):
    """A row whose tokens may be edited ends as the pipeline has it, when an end-of-text token is written and nothing before it
    is masked; and when a block is left in which one stands, for no later one changes it."""

    guarantee = EndOfText.guarantee
    promise = (
        "finished blocks are not edited; in the current one the pipeline freezes a row in which the end is written"
    )

    def start(self, state: SamplerState) -> None:
        state.position_memory["settled_end.tokens"] = state.tokens.clone()

    def stop(self, state: SamplerState, spec: ModelSpec, evaluation: Evaluation) -> Tensor:
        written = state.tokens != state.position_memory["settled_end.tokens"]
        state.position_memory["settled_end.tokens"] = state.tokens.clone()
        column, masked = state.column, state.masked()
        ends = (state.tokens == spec.eos_id) & (column >= state.prompt_length[:, None]) & state.valid
        first = torch.where(ends.any(-1), ends.int().argmax(-1), -1)
        settled = (first >= 0) & ~(masked & (column < first[:, None])).any(-1)
        left = ~(masked & state.in_block).any(-1) & ~state.held
        return settled & ((ends & written).any(-1) | left)


def _call(
    pipe: Any,
    parts: Composition,
    spec: ModelSpec,
    *,
    prompt: Any,
    messages: Any,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    use_chat_template: bool,
    add_generation_prompt: bool,
    gen_length: int,
    block_length: int | None,
    num_inference_steps: int,
    temperature: float,
    top_p: float | None,
    top_k: int | None,
    sampling_method: str,
    threshold: float,
    editing_threshold: float | None,
    max_post_steps: int,
    minimal_topk: int,
    eos_early_stop: bool,
    eos_token_id: int | None,
    mask_token_id: int | None,
    generator: torch.Generator | None,
    output_type: str,
    return_dict: bool,
    callback_on_step_end: Any,
    callback_on_step_end_tensor_inputs: list[str] | None,
) -> Any:
    """`LLaDA2Pipeline.__call__`; its checks and its tokenising are the pipeline's own."""
    block = pipe.scheduler.config.block_length if block_length is None else block_length
    watch = StepCallback.of(pipe, callback_on_step_end, callback_on_step_end_tensor_inputs)
    pipe.check_inputs(
        prompt=prompt,
        messages=messages,
        input_ids=input_ids,
        gen_length=gen_length,
        block_length=block,
        num_inference_steps=num_inference_steps,
        minimal_topk=minimal_topk,
        threshold=threshold,
        sampling_method=sampling_method,
        output_type=output_type,
        callback_on_step_end=callback_on_step_end,
        callback_on_step_end_tensor_inputs=watch.names,
    )
    ids, given = pipe._prepare_input_ids(
        prompt=prompt,
        messages=messages,
        input_ids=input_ids,
        attention_mask=attention_mask,
        use_chat_template=use_chat_template,
        add_generation_prompt=add_generation_prompt,
        chat_template_kwargs=None,
    )
    mask_id = spec.mask_id if mask_token_id is None else mask_token_id
    eos_id = spec.eos_id if eos_token_id is None else eos_token_id
    if mask_id == UNKNOWN:
        raise InvalidArgumentError("mask_token_id is missing: the tokenizer has no mask token, so pass mask_token_id=")
    device = pipe._execution_device
    ids, given = (torch.atleast_2d(tensor).to(device) for tensor in (ids, given))
    steps = min(num_inference_steps, gen_length // minimal_topk)
    pipe.scheduler.set_timesteps(steps, device=device, block_length=block)
    width = ids.shape[1]
    pipe._num_timesteps = steps * (-(-(width + gen_length) // block) - width // block)

    remask = parts.remask
    if remask is None and editing_threshold is not None and 0 < editing_threshold < 1:
        # The pipeline's limit is passed, not reached, before it gives up.
        remask = PipelineEditing(editing_threshold, max_post_steps + 1, steps)
    stopping = list(parts.stopping)
    if eos_early_stop and eos_id is not None:
        stopping.append(EndOfText() if remask is None else SettledEnd())
    if watch.wanted:
        stopping.append(watch)
    policy = parts.policy or LowConfidenceDynamic(threshold, steps)
    parts = replace(parts, policy=policy, remask=remask, stopping=stopping)
    draws = temperature > 0 and sampling_method != "greedy"
    rows = rows_of(ids, given)
    if watch.wanted and len(rows) != 1:
        raise InvalidArgumentError(f"callback_on_step_end needs a single row, got a batch of {len(rows)}")
    spec = replace(spec, mask_id=mask_id, eos_id=eos_id, block_length=block)
    new, _ = continuations(
        parts.sampler(pipe.model, spec),
        rows,
        gen_length,
        editable=[torch.zeros_like(row, dtype=torch.bool) for row in rows],
        temperature=temperature if draws else 0.0,
        top_k=max(top_k or 0, 0) if draws else 0,
        top_p=min(top_p, 1.0) if draws and top_p is not None else 1.0,
        callback_on_step_end=watch.call if watch.wanted else None,
        **({"seed": seed_of(None, temperature if draws else 0.0)} if generator is None else {"generator": generator}),
    )
    sequences, texts = new.to(device), None
    if output_type == "text" and pipe.tokenizer is not None:
        shown = [row if eos_id is None else row[: _end(row, eos_id)] for row in sequences]
        texts = pipe.tokenizer.batch_decode(shown, skip_special_tokens=True)
    return LLaDA2PipelineOutput(sequences=sequences, texts=texts) if return_dict else (sequences, texts)


def _end(row: Tensor, eos_id: int) -> int:
    """Tokens up to and with the first end of text."""
    places = (row == eos_id).nonzero()[:, 0]
    return int(places[0]) + 1 if len(places) else len(row)
