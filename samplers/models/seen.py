"""What can be read off a model without running or importing anything: names, configuration, attributes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn

from dlm_samplers.models.adapter import as_matrix

WRAPPERS = ("_orig_mod", "module")
"""Attributes under which torch.compile, DataParallel and DistributedDataParallel keep the model."""

TELLING_FIELDS = (
    "mask_token_id",
    "mask_id",
    "eos_token_id",
    "vocab_size",
    "block_length",
    "block_size",
    "time_conditioning",
    "parameterization",
    "tokens",
)
"""Configuration fields that an error message quotes."""

EVERY_MODULE = {cls.__name__ for cls in nn.Module.__mro__}


@dataclass(frozen=True)
class Seen:
    """A model as it presents itself.

    inner: the model inside the wrappers. wrappers: their class names, from the outside.
    path: where its parts are, seen from the outside: "" or "base_model.model."; None where its wrapper (torch.compile,
        DataParallel, DDP) does nothing unless it is itself called.
    classes: names over the inner class's MRO, nearest first.
    """

    inner: Any
    wrappers: tuple[str, ...]
    path: str | None
    classes: tuple[str, ...]
    architectures: tuple[str, ...]
    model_type: str | None

    @classmethod
    def of(cls, model: Any) -> Seen:
        inner, wrappers, path = model, [], ""
        called_as_a_whole = False
        while True:
            unwrap = getattr(inner, "get_base_model", None)
            name = next((name for name in WRAPPERS if _is_wrapper(inner, name)), None)
            if name is not None:
                within, called_as_a_whole = getattr(inner, name), True
            elif callable(unwrap):  # PEFT
                within = unwrap()
                # Prompt learning puts embeddings before the model's own, which its parts know nothing of.
                called_as_a_whole |= _at(inner, "base_model.model") is not within
                path += "base_model.model."
            else:
                break
            if within is inner or within is None:
                break
            wrappers.append(type(inner).__name__)
            inner = within
        config = getattr(inner, "config", None)
        architectures = _get(config, "architectures")
        model_type = _get(config, "model_type")
        return cls(
            inner=inner,
            wrappers=tuple(wrappers),
            path=None if called_as_a_whole else path,
            classes=tuple(c.__name__ for c in type(inner).__mro__ if c.__name__ not in EVERY_MODULE),
            architectures=tuple(architectures) if isinstance(architectures, (list, tuple)) else (),
            model_type=model_type if isinstance(model_type, str) and model_type else None,
        )

    def setting(self, *names: str) -> Any:
        """The first of these configuration fields that is there and not None; a dot goes into a part of it."""
        for name in names:
            value = getattr(self.inner, "config", None)
            for part in name.split("."):
                value = _get(value, part)
            if value is not None:
                return value
        return None

    def token(self, *names: str) -> int | None:
        """The first of these fields of the configuration, or else of the generation configuration, that is a token id."""
        for config in ("config", "generation_config"):
            for name in names:
                value = _get(getattr(self.inner, config, None), name)
                if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                    return value
        return None

    def has(self, *names: str) -> bool:
        """True when the inner model has these attributes."""
        return all(hasattr(self.inner, name) for name in names)

    def takes(self, keyword: str, part: str | None = None, *, by_name: bool = False) -> bool:
        """True when the inner model's forward, or that of a part of it, takes this keyword.

        by_name: `**kwargs`, which may drop it, does not count.
        """
        called = self.inner if part is None else _at(self.inner, part)
        try:
            parameters = inspect.signature(getattr(called, "forward", called)).parameters
        except (TypeError, ValueError):
            return not by_name
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        return keyword in parameters or (takes_all and not by_name)

    def at(self, path: str) -> Any:
        """What the inner model has at a dotted path; None: nothing."""
        return _at(self.inner, path)

    def split(self, hidden: str, lm_head: str, hidden_after: str | None = None) -> dict[str, Any]:
        """`hidden` and `lm_head` for a spec, and `hidden_after`, where the inner model has them and the head is a plain linear
        layer.

        Nothing where a wrapper has to be called, or where the head is quantised, offloaded, adapted or hooked.
        """
        named = {"hidden": hidden} | ({} if hidden_after is None else {"hidden_after": hidden_after})
        there = all(isinstance(self.at(path), nn.Module) for path in named.values())
        if self.path is None or not there or as_matrix(self.at(lm_head)) is None:
            return {}
        return {name: self.path + path for name, path in {**named, "lm_head": lm_head}.items()}

    def __str__(self) -> str:
        fields = {name: value for name in TELLING_FIELDS if (value := self.setting(name)) is not None}
        lines = {
            "wrapped in": ", ".join(self.wrappers),
            "classes": ", ".join(self.classes),
            "config.model_type": self.model_type,
            "config.architectures": ", ".join(self.architectures),
            "config fields": ", ".join(f"{name}={value!r}" for name, value in fields.items()),
        }
        return "\n".join(
            f"  {name}: {value or 'none'}" for name, value in lines.items() if value or name != "wrapped in"
        )


def _get(config: Any, name: str) -> Any:
    if isinstance(config, Mapping):
        return config.get(name)
    return getattr(config, name, None)


def _at(model: Any, path: str) -> Any:
    try:
        return attrgetter(path)(model)
    except AttributeError:
        return None


def _is_wrapper(model: Any, name: str) -> bool:
    """True for a wrapper, and not for a model that happens to have an attribute of that name."""
    if name == "module" and not isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return False
    return isinstance(model, nn.Module) and isinstance(model._modules.get(name), nn.Module)
