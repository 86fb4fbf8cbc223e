"""In most forwards each layer computes only the columns whose values changed most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from dlm_kernels import InvalidArgumentError
from dlm_samplers.caches.attention import Window, like
from dlm_samplers.caches.base import Cache
from dlm_samplers.guarantees import Guarantee
from dlm_samplers.models.adapter import Adapter
from dlm_samplers.models.own_attention import showing, shown
from dlm_samplers.state import SamplerState

if TYPE_CHECKING:
    from dlm_samplers.sampler import Sampler

SEEN, FORWARDS, CHANGED = "feature.seen", "feature.forwards", "feature.changed"
ROUNDING = 1e-5
"""Values whose cosine is this close to 1 count as equal: the bits depend on how many columns are computed together."""


LAYERS = ("model.layers", "model.transformer.blocks", "transformer.blocks")
"""Where models named as Llama's and as LLaDA's have their layers."""


def values_of(layer: Any, x: Tensor) -> Tensor:
    """[b, n, D]: the values that a layer named as Llama's, or as LLaDA's, attends to."""
    if hasattr(layer, "self_attn"):
        return layer.self_attn.v_proj(layer.input_layernorm(x))
    return layer.v_proj(layer.attn_norm(x))


@dataclass(frozen=True)
class FeatureCache(Cache):
    """Each layer computes the values of all blanks, and everything else only for the `ratio` of them whose values differ most
    from the kept ones; the others get the change that the layer made to them last (dLLM-Cache, arXiv:2506.06295).

    prompt_interval, gen_interval: every so many forwards of a row the whole canvas, or all its blanks, are computed; K_p, K_r.
    ratio: rho. Difference is measured by the cosine.
    layers: where the model has its layers; None: where Llama and LLaDA have them.
    value: value(layer, x [b, n, D]) -> [b, n, ...], what a layer attends to; default: by Llama's or LLaDA's names.

    The prompt's keys and values are those of the last forward over the whole canvas. `SamplerOutput.positions` counts the
    columns that the layers computed.

    Differences from the released code: what is kept lives with the row, so that prompts may be unequal and models share
    nothing; a forward over the whole canvas computes its blanks too. The first layer, which is whole in every forward there,
    computes the tokens that changed and what is left of the share. Of columns whose values did not change, up to rounding,
    the block's open positions go first, then the leftmost.
    """

    prompt_interval: int = 100
    gen_interval: int = 7
    ratio: float = 0.25
    layers: str | None = None
    value: Callable[[Any, Tensor], Tensor] = field(default=values_of, repr=False, compare=False)

    guarantee = Guarantee.APPROXIMATE
    promise = "features that would have moved little, or seldom, are kept"
    sees: ClassVar[str] = "what changed most"
    opens_with_all: ClassVar[bool] = True
    computes_suffix: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("prompt_interval", "gen_interval"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidArgumentError(f"{name} must be an int >= 1, got {value!r}")
        if not 0 < self.ratio <= 1:
            raise InvalidArgumentError(f"ratio must be in (0, 1], got {self.ratio}")

    def check(self, sampler: Sampler) -> None:
        super().check(sampler)
        self.check_bidirectional(sampler)
        layers = self._layers(sampler.adapter)
        named = all(hasattr(getattr(layer, "self_attn", layer), "v_proj") for layer in layers)
        if self.value is values_of and not named:
            raise InvalidArgumentError(
                f"FeatureCache compares values, and {type(layers[0]).__name__} has no self_attn.v_proj or v_proj: give value=, "
                "a function of a layer and its input"
            )

    def start(self, state: SamplerState) -> None:
        state.position_memory[SEEN] = torch.full_like(state.tokens, -1)
        state.memory[FORWARDS] = torch.zeros_like(state.step)
        state.memory[CHANGED] = torch.zeros_like(state.step)

    def columns(self, state: SamplerState) -> Tensor:
        forwards, seen = state.memory[FORWARDS], state.position_memory[SEEN]
        columns = state.editable | (forwards % self.prompt_interval == 0)[:, None]
        state.memory[CHANGED] = ((state.tokens != seen) & columns & state.valid).sum(-1)
        state.position_memory[SEEN] = state.tokens.clone()
        state.memory[FORWARDS] = forwards + 1
        return columns

    def work(self, columns: Tensor, state: SamplerState) -> Tensor:
        count, forwards = columns.sum(-1), state.memory[FORWARDS] - 1
        whole = (forwards % self.prompt_interval == 0) | (forwards % self.gen_interval == 0)
        return torch.where(whole, count, (count * self.ratio).long().clamp(min=1))

    def run(self, adapter: Adapter, tokens: Tensor, window: Window, work: Tensor, state: SamplerState) -> Tensor:
        layers = self._layers(adapter)
        padding = window.repeated()
        whole = work == (~padding).sum(-1)
        if bool(whole.all()):
            shares = None
        else:
            changed = state.memory[CHANGED] if window.rows is None else state.memory[CHANGED][window.rows]
            active = state.active if window.rows is None else state.active[window.rows]
            open_ = active.gather(1, window.columns)
            first = torch.maximum(work, changed)
            shares = [
                _Share(first, int(first.max()), open_),
                *[_Share(work, int(work.max()), open_)] * (len(layers) - 1),
            ]
        with self._partial(layers, shares, padding):
            states = adapter.window(tokens, window)
        real = torch.arange(padding.shape[1], device=states.device).expand_as(padding)
        real = torch.minimum(real, (~padding).sum(-1, keepdim=True) - 1)  # what repeats a column repeats its state
        return states.gather(1, like(real, states))

    def _layers(self, adapter: Adapter) -> Sequence[Any]:
        for path in LAYERS if self.layers is None else (self.layers,):
            try:
                return list(attrgetter(path)(adapter.model))
            except (AttributeError, TypeError):
                continue
        raise InvalidArgumentError(
            f"FeatureCache: layers = {self.layers!r} is no list of layers of {type(adapter.model).__name__}; give the "
            "attribute that is"
        )

    @contextmanager
    def _partial(self, layers: Sequence[Any], shares: list[_Share] | None, padding: Tensor) -> Iterator[None]:
        """While it lasts, each layer computes its share of the columns it is given; None: all, and what they change is kept."""
        before = [vars(layer).get("forward") for layer in layers]
        try:
            for number, layer in enumerate(layers):
                share = None if shares is None else shares[number]
                layer.forward = self._forward(layer, layer.forward, number, share, padding)
            yield
        finally:
            for layer, forward in zip(layers, before, strict=True):
                if forward is None:
                    vars(layer).pop("forward", None)
                else:
                    layer.forward = forward

    def _forward(
        self, layer: Any, forward: Callable[..., Any], number: int, share: _Share | None, padding: Tensor
    ) -> Callable[..., Any]:
        change = f"feature.{number}.change"

        def whole(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            out = forward(x, *args, **kwargs)
            _window_of(kwargs).keep(change, (out[0] if isinstance(out, tuple) else out) - x)
            return out

        def partial(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            assert share is not None
            dlm_window = _window_of(kwargs)
            after = x + dlm_window.at_columns(change)
            kept = dlm_window.at_columns(f"cache.{number}.value").flatten(2)
            alike = torch.cosine_similarity(self.value(layer, x).flatten(2).float(), kept.float(), dim=-1)
            alike = torch.where(alike > 1 - ROUNDING, torch.where(share.open, 1.0, 2.0), alike)
            order = alike.masked_fill(padding, torch.inf).argsort(dim=-1, stable=True)
            offset = torch.arange(share.most, device=x.device)
            index = order.gather(1, torch.minimum(offset, share.columns[:, None] - 1).clamp(min=0))
            some = x.gather(1, like(index, x))
            window = replace(dlm_window, columns=dlm_window.columns.gather(1, index))
            at = [_at(value, index, x.shape[1]) for value in args]
            named = {key: _at(value, index, x.shape[1]) for key, value in kwargs.items()}
            if "dlm_window" in kwargs:
                named["dlm_window"] = window
            with showing(window):
                out = forward(some, *at, **named)
            new = out[0] if isinstance(out, tuple) else out
            window.keep(change, new - some)
            after = after.scatter(1, like(index, new), new)
            return (after, *out[1:]) if isinstance(out, tuple) else after

        return whole if share is None else partial


@dataclass(frozen=True)
class _Share:
    """How many columns a layer computes."""

    columns: Tensor
    """int64 [b]."""
    most: int
    open: Tensor
    """bool [b, n]: columns that may be committed in this step."""


def _window_of(keywords: dict[str, Any]) -> Window:
    """The window that a layer's call computes: among its keywords, or beside them where the model does not pass one along."""
    window = keywords.get("dlm_window", shown())
    assert window is not None
    return window


def _at(value: Any, index: Tensor, n: int) -> Any:
    """An argument of a layer for some of its n columns: those of a tensor (or tuple of them) that has them in dimension 1 or
    -2."""
    if isinstance(value, tuple):
        return tuple(_at(item, index, n) for item in value)
    if not isinstance(value, Tensor) or value.ndim < 2 or n not in (value.shape[1], value.shape[-2]):
        return value
    value = value.expand(len(index), *value.shape[1:])
    if value.shape[1] == n:
        return value.gather(1, like(index, value))
    return value.transpose(1, -2).gather(1, like(index, value.transpose(1, -2))).transpose(1, -2)
