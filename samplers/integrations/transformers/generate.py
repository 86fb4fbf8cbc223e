"""`generate` of transformers on this library's sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import (
    EosTokenCriteria,
    GenerateDecoderOnlyOutput,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dlm_kernels import InvalidArgumentError
from dlm_samplers.composition import Composition
from dlm_samplers.integrations.prompts import continuations, rows_of
from dlm_samplers.integrations.transformers.hooks import StopWhen, UntilEnd, by_position
from dlm_samplers.integrations.transformers.options import USED, Options, read_options, seed_of
from dlm_samplers.models import EmbeddedModel, ModelSpec, describe
from dlm_samplers.stopping import EndOfText

SETTINGS = ("block_length", "steps", "cfg_scale", "seed", "generator", "request_ids", "batch_size", "progress")
"""Arguments of `Sampler.generate` that transformers has no name for; `generate` takes them as they are."""
PARTS = tuple(entry.name for entry in fields(Composition))
DESCRIPTION = ("spec", "mask_id", "eos_id")
NOT_FOR_DIFFUSION = (
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)
PREPARED = ("past_key_values", "position_ids", "cache_position", "logits_to_keep", "use_cache")
"""What transformers prepares for a forward of its own before it calls a function given as custom_generate."""


@dataclass
class DiffusionGenerateOutput(GenerateDecoderOnlyOutput):
    """sequences: int64 [B, L]; nfe: int64 [B], model evaluations a row took part in; positions: int64 [B], columns computed."""

    nfe: Tensor | None = None
    positions: Tensor | None = None


def generate(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: Any = None,
    logits_processor: Sequence[Any] | None = None,
    stopping_criteria: Sequence[Any] | None = None,
    streamer: Any = None,
    **kwargs: Any,
) -> Tensor | DiffusionGenerateOutput:
    """transformers' `generate(...)` for a masked diffusion model: int64 [B, P] -> int64 [B, L] or `DiffusionGenerateOutput`.

    Names and meaning are transformers': `generation_config` and the keyword arguments that override it (`max_new_tokens`,
    `max_length`, `do_sample`, `temperature`, `top_k`, `top_p`, `num_return_sequences`, `eos_token_id`, `pad_token_id`,
    `suppress_tokens`, `return_dict_in_generate`, `use_cache`), `attention_mask`, `logits_processor`, `stopping_criteria`,
    `streamer`. Rows end at the end of text, are filled with the padding token, and the batch is as long as its longest row.
    Beside them the arguments of `Sampler` (policy, cache, ...) and those of `Sampler.generate` in `SETTINGS`. Where it differs:

    - Without a length 128 tokens are generated, not 20 with the prompt.
    - `seed` or `generator` key the draws; without them torch's generator is asked for one number, so `set_seed` works.
    - A logits processor is called once for every masked column and step, with the tokens left of it. It goes without a
      cache, and with prompts of one length.
    - A stopping criterion is asked about every token as soon as that and all before it are settled.
    - Prompts are padded on the left; a row is computed without its padding.
    - `use_cache=False` turns `cache` off.
    - With `inputs_embeds` [B, P, D] in place of ids the result is what is generated, as there. Processors and criteria, which
      are shown ids, do not go with it.

    Raises InvalidArgumentError (a ValueError) that names an argument it does not know, or that means nothing here.
    """
    for name in NOT_FOR_DIFFUSION:
        if kwargs.pop(name, None) not in (None, False):
            raise InvalidArgumentError(f"{name} means nothing to a diffusion sampler; leave it out")
    parts = Composition(**{name: kwargs.pop(name) for name in PARTS if name in kwargs})
    description = {name: kwargs.pop(name, None) for name in DESCRIPTION}
    return generate_with(
        *(model, parts, described(model, **description), inputs, generation_config),
        *(logits_processor, stopping_criteria, streamer, kwargs),
    )


def dlm_generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    *,
    policy: Any = None,
    cache: Any = "auto",
    remask: Any = None,
    stopping: Any = (),
    length: Any = None,
    verify: Any = None,
    backend: str | None = None,
    spec: ModelSpec | None = None,
    mask_id: int | None = None,
    eos_id: int | None = None,
    block_length: Any = "default",
    steps: int | None = None,
    cfg_scale: float = 0.0,
    seed: Any = None,
    generator: torch.Generator | None = None,
    request_ids: Any = None,
    batch_size: int | None = None,
    progress: bool = False,
    **model_kwargs: Any,
) -> Tensor | DiffusionGenerateOutput:
    """For `model.generate(..., custom_generate=dlm_generate)`: arguments as for `generate`.

    transformers calls it with what it prepared: expanded rows, a resolved generation config, and processors and criteria
    made from that. Of these the ones that the sampler has itself (temperature, top-k, top-p, end of text, length) are
    taken out, and the others called as `generate` says. It hands no streamer over: use `accelerate`, or the folder form.
    """
    mask = model_kwargs.pop("attention_mask", None)
    unknown = sorted(
        name for name, value in model_kwargs.items() if name not in PREPARED and value not in (None, False)
    )
    if getattr(generation_config, "num_beams", 1) not in (None, 1):
        unknown.append("num_beams")
    if unknown:
        raise InvalidArgumentError(f"{', '.join(unknown)}: mean nothing to a diffusion sampler; leave them out")
    mine = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)
    processors = [p for p in logits_processor or () if not isinstance(p, mine)]
    criteria = [c for c in stopping_criteria or () if not isinstance(c, (MaxLengthCriteria, EosTokenCriteria))]
    options = read_options(model, None, {name: getattr(generation_config, name, None) for name in USED})
    # The rows are there already, and of the cache that transformers has made nothing is used.
    options = replace(options, num_return_sequences=1, max_new_tokens=None, use_cache=None)
    settings = {
        "block_length": block_length,
        "steps": steps,
        "cfg_scale": cfg_scale,
        "seed": seed,
        "generator": generator,
        "request_ids": request_ids,
        "batch_size": batch_size,
        "progress": progress,
    }
    parts = Composition(policy, cache, remask, stopping, length, verify, backend)
    spec = described(model, spec=spec, mask_id=mask_id, eos_id=eos_id)
    return _run(model, parts, spec, input_ids, mask, options, processors, criteria, None, settings)


def described(model: Any, *, spec: ModelSpec | None, mask_id: int | None, eos_id: int | None) -> ModelSpec:
    """The description given, or the one found."""
    if spec is None:
        return describe(model, mask_id=mask_id, eos_id=eos_id).require_spec()
    if mask_id is not None or eos_id is not None:
        raise InvalidArgumentError("mask_id and eos_id belong inside spec when spec is given")
    return spec


def generate_with(
    model: Any,
    parts: Composition,
    spec: ModelSpec,
    inputs: Tensor | None,
    generation_config: Any,
    logits_processor: Sequence[Any] | None,
    stopping_criteria: Sequence[Any] | None,
    streamer: Any,
    kwargs: dict[str, Any],
) -> Tensor | DiffusionGenerateOutput:
    """`generate` of a model whose parts and description are known."""
    kwargs = dict(kwargs)
    if inputs is not None and kwargs.get("input_ids") is not None:
        raise InvalidArgumentError("inputs and input_ids are the same argument; give one of them")
    input_ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
    embeds, mask = kwargs.pop("inputs_embeds", None), kwargs.pop("attention_mask", None)
    settings = {name: kwargs.pop(name) for name in SETTINGS if name in kwargs}
    known = vars(GenerationConfig())
    unknown = sorted(name for name, value in kwargs.items() if name not in known and value is not None)
    if unknown:
        raise InvalidArgumentError(
            f"unknown arguments {unknown}; allowed are transformers' generation arguments, attention_mask, inputs_embeds, "
            f"logits_processor, stopping_criteria, streamer and {', '.join(SETTINGS)}"
        )
    options = read_options(model, generation_config, kwargs)
    processors, criteria = list(logits_processor or ()), list(stopping_criteria or ())
    prompt = 0
    if embeds is not None:
        if input_ids is not None or processors or criteria:
            raise InvalidArgumentError(
                "inputs_embeds goes without input_ids, logits_processor and stopping_criteria: there are no ids to show them"
            )
        if not isinstance(embeds, Tensor) or embeds.ndim != 3:
            raise InvalidArgumentError("inputs_embeds must be a float tensor [B, P, D]")
        model = EmbeddedModel(model, spec, list(embeds))
        spec, prompt, input_ids = model.spec, embeds.shape[1], torch.stack(model.ids).to(embeds.device)
    out = _run(model, parts, spec, input_ids, mask, options, processors, criteria, streamer, settings)
    if isinstance(out, DiffusionGenerateOutput):
        out.sequences = out.sequences[:, prompt:]
        return out
    return out[:, prompt:]


def _run(
    model: Any,
    parts: Composition,
    spec: ModelSpec,
    input_ids: Tensor,
    mask: Tensor | None,
    options: Options,
    processors: list[Callable[..., Tensor]],
    criteria: list[Callable[..., Any]],
    streamer: Any,
    settings: dict[str, Any],
) -> Tensor | DiffusionGenerateOutput:
    eos_ids = options.eos_ids or (() if spec.eos_id is None else (spec.eos_id,))
    pad_id = options.pad_id if options.pad_id is not None else next(iter(eos_ids), spec.fill_id)
    if mask is None and isinstance(input_ids, Tensor) and options.pad_id is not None and options.pad_id not in eos_ids:
        mask = (input_ids != options.pad_id).long()  # as transformers guesses
    rows = rows_of(input_ids, mask)
    new_tokens = options.new_tokens(input_ids.shape[1])
    if mask is not None and not bool(mask[:, -1:].all()):
        raise InvalidArgumentError("attention_mask: pad the prompts on the left")
    if processors and len({len(row) for row in rows}) > 1:
        raise InvalidArgumentError("logits_processor needs prompts of one length, for it counts columns; got padding")
    copies = options.num_return_sequences
    input_ids, rows = input_ids.repeat_interleave(copies, 0), [row for row in rows for _ in range(copies)]
    kept = torch.full((len(rows),), -1)
    if len(eos_ids) > 1:
        criteria = [*criteria, EosTokenCriteria(list(eos_ids))]
    stopping = list(parts.stopping)
    if eos_ids and parts.remask is None and not any(isinstance(rule, EndOfText) for rule in stopping):
        stopping.append(EndOfText())
    if criteria:
        stopping.append(StopWhen(StoppingCriteriaList(criteria), kept))
    never = () if not options.suppressed else tuple({*spec.never, *options.suppressed})
    spec = replace(spec, eos_id=next(iter(eos_ids), None), suppressed_ids=never or spec.suppressed_ids)
    uncached = options.use_cache is False or (parts.cache == "auto" and (processors or settings.get("cfg_scale")))
    parts = replace(parts, stopping=stopping, cache=None if uncached else parts.cache)
    if streamer is not None:
        streamer = UntilEnd(streamer, eos_ids, kept, new_tokens)
    if settings.get("generator") is None:
        settings = settings | {"seed": seed_of(settings.get("seed"), options.temperature)}
    else:
        settings = {name: value for name, value in settings.items() if name != "seed"}
    new, output = continuations(
        parts.sampler(model, spec),
        rows,
        new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        logits_processor=by_position(LogitsProcessorList(processors), spec.mask_id) if processors else None,
        streamer=streamer,
        **settings,
    )
    sequences = torch.cat([input_ids, _ended(new, kept, eos_ids, pad_id).to(input_ids.device)], dim=1)
    if not options.return_dict:
        return sequences
    return DiffusionGenerateOutput(sequences, nfe=output.nfe, positions=output.positions)  # type: ignore[arg-type]


def _ended(new: Tensor, kept: Tensor, eos_ids: tuple[int, ...], pad_id: int) -> Tensor:
    """Padding after the first end-of-text token and after `kept` tokens, where that is not -1; columns that no row uses go."""
    column = torch.arange(new.shape[1], device=new.device)
    ends = torch.isin(new, torch.tensor(eos_ids, dtype=torch.int64, device=new.device))
    length = torch.where(ends.any(-1), ends.int().argmax(-1) + 1, new.shape[1]) if new.shape[1] else kept * 0
    kept = kept.to(new.device)
    length = torch.where(kept >= 0, torch.minimum(length, kept), length)
    return new.masked_fill(column >= length[:, None], pad_id)[:, : int(length.max()) if len(length) else 0]
