"""A model that is shown vectors in place of tokens: images, audio, soft prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.models.adapter import device_of
from dlm_samplers.models.spec import ModelSpec


class EmbeddedModel:
    """A model for which each given vector is a token of its own, with an id beyond the model's.

    A prompt in which `ids[i]` stand for `vectors[i]` goes through every sampler, cache and batch as any other, and the model
    gets `inputs_embeds` [B, L, D] in place of tokens. So LLaDA-V, LaViDa and Dream-VL are shown images, whose features their
    own code computes:

        image = EmbeddedModel(model, spec, [features])  # [n, D]
        prompt = torch.cat([before, image.ids[0], after])
        out = LLaDASampler(image, spec=image.spec).generate([prompt])

    model: takes `argument` in place of its ids. spec: how it is called, see `describe`.
    vectors: float [n_i, D], as many as there are pieces.
    embed: ids -> vectors of the model's own tokens; default: `model.get_input_embeddings()`.
    argument: the keyword for the vectors; "input_embeddings" in LaViDa's code.

    `spec` is the description for samplers: where the trunk takes no such keyword, without `hidden` and `lm_head`. All other
    attributes are the model's. The ids come back in `SamplerOutput.sequences`, where no tokenizer knows them; `completions` are
    without them.

    Raises InvalidArgumentError for vectors of another width, a model without embeddings or that does not take the keyword.
    """

    def __init__(
        self,
        model: Any,
        spec: ModelSpec,
        vectors: Sequence[Tensor],
        *,
        embed: Callable[[Tensor], Tensor] | None = None,
        argument: str = "inputs_embeds",
    ) -> None:
        if embed is None:
            get = getattr(model, "get_input_embeddings", None)
            embed = get() if callable(get) else None
        if embed is None:
            raise InvalidArgumentError(
                f"embed: {type(model).__name__} has no get_input_embeddings(); give the function from ids [B, L] to vectors"
            )
        if not _takes(model, argument):
            raise InvalidArgumentError(f"argument: {type(model).__name__}'s forward takes no {argument!r}")
        example = embed(torch.tensor([[spec.mask_id]], device=device_of(model)))[0]
        width = example.shape[-1]
        for number, given in enumerate(vectors):
            if (
                not isinstance(given, Tensor)
                or given.ndim != 2
                or given.shape[1] != width
                or not given.is_floating_point()
            ):
                got = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
                raise InvalidArgumentError(f"vectors[{number}] must be floats [n, {width}], got {got}")
        known = (getattr(embed, "num_embeddings", 0), spec.vocab_size or 0, spec.mask_id + 1, (spec.eos_id or 0) + 1)
        self.first = max(known)
        self.vectors = torch.cat([example[:0], *(given.to(example) for given in vectors)])
        self.ids = (torch.arange(len(self.vectors)) + self.first).split([len(given) for given in vectors])
        self.model, self.embed, self.argument = model, embed, argument
        spec = replace(spec, vocab_size=self.first + len(self.vectors))
        self.trunk: Any = None
        if spec.hidden is not None:
            self.trunk = attrgetter(spec.hidden)(model)
            split = {"hidden": "_states"} if _takes(self.trunk, argument) else {"hidden": None, "lm_head": None}
            spec = replace(spec, **split)
        self.spec = spec

    def embedded(self, tokens: Tensor) -> Tensor:
        """float [B, L, D]: what the model is shown for tokens [B, L]."""
        given = tokens >= self.first
        own = self.embed(tokens.masked_fill(given, self.spec.mask_id))
        return torch.where(given[..., None], self.vectors[(tokens - self.first).clamp(min=0)], own)

    def __call__(self, tokens: Tensor, **kwargs: Any) -> Any:
        return self.model(**{self.argument: self.embedded(tokens)}, **kwargs)

    def _states(self, tokens: Tensor, **kwargs: Any) -> Any:
        return self.trunk(**{self.argument: self.embedded(tokens)}, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # not there yet
            raise AttributeError(name)
        return getattr(self.model, name)


def _takes(called: Any, keyword: str) -> bool:
    parameters = inspect.signature(getattr(called, "forward", called)).parameters
    return keyword in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
