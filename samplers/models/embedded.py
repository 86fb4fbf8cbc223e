"""A model that is shown vectors in place of tokens: images, audio, soft prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from dlm_kernels import InvalidArgumentError
from dlm_samplers.models.adapter import device_of
from dlm_samplers.models.spec import ModelSpec


class EmbeddedModel(nn.Module):
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

    `spec` is the description for samplers: where the trunk takes no such keyword, without `hidden`; where it does, the trunk
    alone is called, for LLaDA-V's own forward fails on vectors. All other attributes are the model's. The ids come back in
    `SamplerOutput.sequences`, where no tokenizer knows them; `completions` are without them.

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
        super().__init__()
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
            if not isinstance(given, Tensor) or given.shape[1:] != (width,) or not given.is_floating_point():
                got = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
                raise InvalidArgumentError(f"vectors[{number}] must be floats [n, {width}], got {got}")
        known = (getattr(embed, "num_embeddings", 0), spec.vocab_size or 0, spec.mask_id + 1, (spec.eos_id or 0) + 1)
        first = max(known)
        table = torch.cat([example[:0], *(given.to(example) for given in vectors)])
        self.ids = (torch.arange(len(table)) + first).split([len(given) for given in vectors])

        def embedded(tokens: Tensor) -> Tensor:
            given = tokens >= first
            own = embed(tokens.masked_fill(given, spec.mask_id))
            return torch.where(given[..., None], table[(tokens - first).clamp(min=0)], own)

        self._inner = model
        self._shown = _Shown(model, argument, embedded)
        described = replace(spec, vocab_size=first + len(table))
        if spec.hidden is not None:
            trunk = attrgetter(spec.hidden)(model)
            self._states = _Shown(trunk, argument, embedded)
            if _takes(trunk, argument):
                described = replace(described, hidden="_states")
            else:
                described = replace(described, hidden=None, lm_head=None, hidden_after=None)
        self.spec = described

    def forward(self, tokens: Tensor, **kwargs: Any) -> Any:
        """The model's output for tokens [B, L], some of which are vectors."""
        return self._shown(tokens, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_inner":  # not there yet
                raise
            return getattr(self._inner, name)


class _Shown:
    """A model, or its trunk, called with tokens and shown what they are embedded to."""

    def __init__(self, called: Any, argument: str, embedded: Callable[[Tensor], Tensor]) -> None:
        self.called, self.argument, self.embedded = called, argument, embedded
        self.forward = getattr(called, "forward", called)  # whose keywords it takes
        first = next(iter(inspect.signature(self.forward).parameters.values()))
        wants_ids = first.default is inspect.Parameter.empty and first.kind is first.POSITIONAL_OR_KEYWORD
        self.ids = (None,) if wants_ids and first.name != argument else ()  # LLaDA's trunk has to be given some

    def __call__(self, tokens: Tensor, **kwargs: Any) -> Any:
        return self.called(*self.ids, **{self.argument: self.embedded(tokens)}, **kwargs)


def _takes(called: Any, keyword: str) -> bool:
    parameters = inspect.signature(getattr(called, "forward", called)).parameters
    return keyword in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
