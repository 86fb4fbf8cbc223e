"""This library's sampler behind a model's own `generate`, or a pipeline's own call, and back again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

from dlm_samplers.caches import Cache
from dlm_samplers.composition import Composition
from dlm_samplers.lengths import LengthRule
from dlm_samplers.models import ModelSpec
from dlm_samplers.policies import Policy
from dlm_samplers.remask import Remask
from dlm_samplers.stopping import StoppingRule
from dlm_samplers.verify import Verify

Target = TypeVar("Target")


class Absent:
    """In the place of an attribute that an object did not have of its own. A class, for that stays itself in a copy."""


class Replacement:
    """A function of an object that stands among its attributes as a method would, and what stood there before it.

    Not a bound method: in a copy of the object it is the copy's.
    """

    def __init__(self, function: Callable[..., Any], owner: Acceleration[Any], before: Any) -> None:
        self.function, self.owner, self.before = function, owner, before
        self.__doc__ = function.__doc__

    def __call__(self, *arguments: Any, **kwargs: Any) -> Any:
        return self.function(self.owner.target, *arguments, **kwargs)


class Acceleration(Generic[Target]):
    """What `accelerate` returns: a context manager that gives the object itself, and takes the acceleration off at its end."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def __enter__(self) -> Target:
        return self.target

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def replace(self, **functions: Callable[..., Any]) -> None:
        """Gives the object these methods; each is called with the object first."""
        own = vars(self.target)
        for name, function in functions.items():
            own[name] = Replacement(function, self, own.get(name, Absent))

    def become(self, methods: dict[str, Any]) -> None:
        """Gives the object a class of the same name in which these methods are others: for calls, which look there alone."""
        current = type(self.target)
        original = getattr(current, "_dlm_original", current)
        added = {"_dlm_owner": self, "_dlm_before": current, "_dlm_original": original}
        names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
        self.target.__class__ = type(original.__name__, (original,), {**names, **methods, **added})

    def restore(self) -> None:
        """Takes this acceleration off, whatever was put on before or after it; nothing where it is off already."""
        own = vars(self.target)
        for name in [name for name, value in own.items() if isinstance(value, Replacement)]:
            above, entry = None, own[name]
            while isinstance(entry, Replacement) and entry.owner is not self:
                above, entry = entry, entry.before
            if not isinstance(entry, Replacement):
                continue
            if above is not None:
                above.before = entry.before
            elif entry.before is Absent:
                del own[name]
            else:
                own[name] = entry.before
        over: Any = None
        kind: Any = type(self.target)
        while getattr(kind, "_dlm_owner", self) is not self:
            over, kind = kind, kind._dlm_before
        if hasattr(kind, "_dlm_owner"):
            if over is None:
                self.target.__class__ = kind._dlm_before
            else:
                over._dlm_before = kind._dlm_before


def accelerate(
    target: Target,
    *,
    policy: Policy | None = None,
    cache: Cache | Literal["auto"] | None = "auto",
    remask: Remask | None = None,
    stopping: Iterable[StoppingRule] = (),
    length: LengthRule | None = None,
    verify: Verify | None = None,
    spec: ModelSpec | None = None,
    mask_id: int | None = None,
    eos_id: int | None = None,
    backend: str | None = None,
) -> Acceleration[Target]:
    """Puts this library's sampler behind `model.generate(...)` or `pipeline(...)`, until `restore` or the end of `with`.

    target: a LLaDA-, Dream-, SDAR- or LLaDA2-type model, whose `generate` (of Dream also `diffusion_generate`) is replaced, see
        `dlm_samplers.integrations.transformers.generate`; or diffusers' `LLaDA2Pipeline`, see
        `dlm_samplers.integrations.diffusers.llada2`. The call stays what it was.
    policy, remask, stopping, length, verify, backend: as for `Sampler`; the default policy is the family's published one, or
        the one that the call's own arguments describe.
    cache: as for `Sampler`; "auto" is `BlockCache` where attention is block-causal, which changes no token.
    spec, mask_id, eos_id: how to call a model that is not recognised, or has no mask token in its config.

    What is put on twice has to be taken off twice, in any order; `restore` takes off everything.

    Raises, with the target as it was: InvalidArgumentError for a model that is not recognised and parts that do not go
    together or with it; ModelMismatchError for a model that does not attend as its family does; UnsupportedVersionError for
    a transformers or diffusers that is too old.
    """
    from dlm_samplers.integrations.versions import require

    parts = Composition(policy, cache, remask, stopping, length, verify, backend)
    acceleration = Acceleration(target)
    require("transformers", "4.48")
    if any(base.__name__ == "DiffusionPipeline" for base in type(target).__mro__):
        require("diffusers", "0.42")
        from dlm_samplers.integrations.diffusers.llada2 import pipeline_methods

        acceleration.become(pipeline_methods(target, parts, spec, mask_id, eos_id))
    else:
        from dlm_samplers.integrations.transformers.methods import model_methods

        acceleration.replace(**model_methods(target, parts, spec, mask_id, eos_id))
    return acceleration


def restore(target: Any) -> None:
    """Takes every acceleration off: the object is what it was. Nothing to do for one that has none."""
    for value in list(vars(target).values()):
        while isinstance(value, Replacement):
            value.owner.restore()
            value = value.before
    target.__class__ = getattr(type(target), "_dlm_original", type(target))
