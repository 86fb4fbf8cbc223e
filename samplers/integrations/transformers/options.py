"""transformers' generation arguments, as far as they mean something for a diffusion language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from dlm_kernels import InvalidArgumentError

DEFAULT_NEW_TOKENS = 128
"""Where nothing says how long; of `Sampler.generate`. transformers' own would be 20 tokens, prompt included."""
USED = (
    "max_length",
    "max_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "num_return_sequences",
    "return_dict_in_generate",
    "eos_token_id",
    "pad_token_id",
    "suppress_tokens",
    "use_cache",
)
WITHOUT_EFFECT = ("bos_token_id", "decoder_start_token_id", "transformers_version", "renormalize_logits")


@dataclass(frozen=True)
class Options:
    """What is left of a generation config and the keyword arguments that override it."""

    max_length: int | None
    max_new_tokens: int | None
    temperature: float
    """0: the likeliest token."""
    top_k: int
    top_p: float
    num_return_sequences: int
    return_dict: bool
    eos_ids: tuple[int, ...]
    """Empty: none given, the model's description decides."""
    pad_id: int | None
    suppressed: tuple[int, ...]
    use_cache: bool | None
    """None: not said."""

    def new_tokens(self, prompt_length: int) -> int:
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            return DEFAULT_NEW_TOKENS
        if self.max_length < prompt_length:
            raise InvalidArgumentError(
                f"max_length = {self.max_length} is shorter than the prompt of {prompt_length} tokens; use max_new_tokens"
            )
        return self.max_length - prompt_length


def read_options(model: Any, generation_config: Any, given: Mapping[str, Any]) -> Options:
    """Keyword arguments before `generation_config` before the model's own, as transformers has it.

    Of the model's own those that mean nothing here are left out without a word: they were made for another way to generate.
    Raises InvalidArgumentError for one that the caller sets.
    """
    own = getattr(model, "generation_config", None)
    found: dict[str, Any] = {}
    for source in (own, generation_config, given):
        values = dict(source) if isinstance(source, Mapping) else {} if source is None else vars(source)
        if source is not own:
            _refuse(values)
        found |= {name: value for name, value in values.items() if name in USED and value is not None}
    sampled = bool(found.get("do_sample", False))
    copies = found.get("num_return_sequences", 1)
    if not sampled and copies != 1:
        raise InvalidArgumentError(f"num_return_sequences = {copies} needs do_sample=True: greedy rows would be equal")
    temperature = float(found.get("temperature", 1.0))
    if sampled and not temperature > 0:
        raise InvalidArgumentError(
            f"temperature must be > 0 with do_sample=True, got {temperature}; leave do_sample out"
        )
    return Options(
        max_length=found.get("max_length"),
        max_new_tokens=found.get("max_new_tokens"),
        temperature=temperature if sampled else 0.0,
        top_k=int(found.get("top_k", 50)) if sampled else 0,  # 50 is transformers' default
        top_p=float(found.get("top_p", 1.0)) if sampled else 1.0,
        num_return_sequences=copies,
        return_dict=bool(found.get("return_dict_in_generate", False)),
        eos_ids=_ids(found.get("eos_token_id")),
        pad_id=next(iter(_ids(found.get("pad_token_id"))), None),
        suppressed=_ids(found.get("suppress_tokens")),
        use_cache=given.get("use_cache"),
    )


def _refuse(values: Mapping[str, Any]) -> None:
    """Raises InvalidArgumentError for an argument that would change something and that a diffusion sampler does not have."""
    plain = vars(GenerationConfig())
    defaults: dict[str, Any] = getattr(GenerationConfig, "_get_default_generation_params", dict)()
    for name, value in values.items():
        if name not in plain or name in USED + WITHOUT_EFFECT or name.startswith("_"):
            continue
        if value is not None and value is not False and value not in (plain[name], defaults.get(name)):
            raise InvalidArgumentError(
                f"{name} = {value!r} means nothing to a diffusion sampler; what is a logits processor in transformers can be "
                "passed in logits_processor="
            )


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if isinstance(value, Tensor):
        value = value.tolist()
    return (value,) if isinstance(value, int) else tuple(int(token) for token in value)


def seed_of(given: Any, temperature: float) -> Any:
    """The seed that was asked for; without one the next number of torch's generator, which `set_seed` sets, if any is drawn."""
    if given is not None:
        return given
    return int(torch.randint(2**63 - 1, ())) if temperature > 0 else 0
