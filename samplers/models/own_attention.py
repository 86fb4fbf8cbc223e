"""Attention of published model code, which calls `scaled_dot_product_attention` by itself, answered by a cache's window.

Read from public copies of modeling_llada.py (LLaDA's, LaViDa's and LLaDA-V's), modeling_lladamoe.py, modeling_dream.py,
modeling_llada2_moe.py and modeling_sdar.py; nothing of them is imported.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlm_kernels import InvalidArgumentError

if TYPE_CHECKING:
    from dlm_samplers.caches.attention import Window

SDPA = torch.nn.functional.scaled_dot_product_attention


@dataclass(frozen=True)
class Shown:
    """The window that the running forward computes, and the layers that have attended as it says."""

    window: Window
    answered: list[int]


_SHOWN: ContextVar[Shown | None] = ContextVar("dlm_window", default=None)
"""Other threads' forwards are shown none, and are what they always are."""


@dataclass(frozen=True)
class AttentionCode:
    """How a published class of modules attends.

    groups: query heads that share a head of keys, where it repeats the keys for them before it attends, each next to itself.
    tables: method, of the module or a part of it, that makes the rotary tables of a length, (sine, cosine) [1, 1, L, D],
        where positions come from lengths; None: from position ids.
    rotary: name of the modules, anywhere in the model, that are called with something and position ids. They are given the
        columns, for some copies of the code take position ids and drop them. None: not known.
    method: of the module, what calls scaled_dot_product_attention.
    flash: attribute that is not None where the module goes past scaled_dot_product_attention, and how it is made None.
    """

    groups: Callable[[Any], int] = lambda module: 1
    tables: str | None = None
    rotary: str | None = None
    method: str = "forward"
    flash: tuple[str, str] | None = None


def _llama_groups(module: Any) -> int:
    return getattr(module, "num_key_value_groups", 1)


def _olmo_groups(module: Any) -> int:
    return module.config.n_heads // module.config.effective_n_kv_heads


OLMO = AttentionCode(
    _olmo_groups,
    tables="rotary_emb.get_rotary_embedding",
    method="_scaled_dot_product_attention",
    flash=("flash_attn_func", "with flash_attention=False in its config"),
)
"""LLaDA and what is made of it: a block attends by a method of its own."""
LLAMA = AttentionCode(_llama_groups, rotary="rotary_emb")

PUBLISHED = {
    "LLaDALlamaBlock": OLMO,
    "LLaDASequentialBlock": OLMO,
    "DreamSdpaAttention": LLAMA,
    "LLaDASdpaAttention": LLAMA,  # LLaDA-V's
    "LLaDAMoESdpaAttention": LLAMA,
    "LLaDA2MoeSdpaAttention": LLAMA,
    "SDARAttention": LLAMA,
    "SDARMoeAttention": LLAMA,
}
EXPLICIT = {
    "DreamAttention",
    "LLaDAAttention",
    "LLaDAFlashAttention2",
    "LLaDAMoEAttention",
    "LLaDAMoEFlashAttention2",
    "LLaDA2MoeAttention",
    "LLaDA2MoeFlashAttention2",
    "LLaDA2MoeFlexAttention",
}
"""Classes of the same files that multiply matrices, or call flash attention, themselves."""


@dataclass(frozen=True)
class Attending:
    """A module of a model that attends by itself, and which of them it is."""

    module: nn.Module
    layer: int
    code: AttentionCode

    @property
    def name(self) -> str:
        return type(self.module).__name__


@dataclass(frozen=True)
class OwnAttention:
    """What of a model attends by itself, in its order, and the modules that are given the columns as position ids."""

    modules: tuple[Attending, ...] = ()
    rotary: tuple[nn.Module, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.modules)

    @property
    def knows_columns(self) -> bool:
        """True where positions are the window's columns whatever the model makes of `position_ids`."""
        return bool(self.rotary) or all(one.code.tables is not None for one in self.modules)


def own_attention(model: Any, own: str | None = None) -> OwnAttention:
    """What is known of a model's own attention; an empty one, which is false, for other models.

    own: name of a class of modules, instead of the published ones.

    Raises InvalidArgumentError where modules are seen not to use scaled_dot_product_attention, and where there is no module of
    the class `own`.
    """
    if not isinstance(model, nn.Module):
        return OwnAttention()
    known = PUBLISHED if own is None else {own: AttentionCode()}
    found: list[Attending] = []
    for module in model.modules():
        names = [kind.__name__ for kind in type(module).__mro__]
        name = next((name for name in names if name in known or (own is None and name in EXPLICIT)), None)
        if name is None:
            continue
        if name in EXPLICIT and own is None:
            if getattr(model, "_supports_attention_backend", False):  # later code of that name
                continue
            raise _not_intercepted(name)
        code = known[name]
        if code.flash is not None and getattr(module, code.flash[0], None) is not None:
            raise _not_intercepted(name, code.flash[1])
        for needed in (code.method, code.tables):
            if needed is not None and not callable(getattr(*_owner(module, needed), None)):
                raise InvalidArgumentError(
                    f"cache: {name} has no {needed}, by which published code of that name attends; use cache=None"
                )
        found.append(Attending(module, len(found), code))
    if own is not None and not found:
        raise InvalidArgumentError(f"spec.attention = {own!r}: {type(model).__name__} has no module of that class")
    called = {one.code.rotary for one in found} - {None}
    rotary = [module for path, module in model.named_modules() if path.rpartition(".")[2] in called]
    return OwnAttention(tuple(found), tuple(rotary))


def _owner(module: Any, path: str) -> tuple[Any, str]:
    """Whose attribute a dotted path names, and that attribute's name; None where there is no such part."""
    *parts, name = path.split(".")
    for part in parts:
        module = getattr(module, part, None)
    return module, name


@contextmanager
def showing(window: Window) -> Iterator[Shown]:
    """While it lasts, modules under `intercepting` attend as the window says."""
    around = _SHOWN.get()
    here = Shown(window, [] if around is None else around.answered)
    token = _SHOWN.set(here)
    try:
        yield here
    finally:
        _SHOWN.reset(token)


def shown() -> Window | None:
    """The window that the running forward computes."""
    here = _SHOWN.get()
    return None if here is None else here.window


@dataclass
class _Interception:
    users: int
    undo: ExitStack


_LOCK = threading.Lock()
_INTERCEPTED: WeakKeyDictionary[nn.Module, _Interception] = WeakKeyDictionary()
"""A model may be used by several threads, or by a callback of its own sampler: the last to leave puts it back."""


@contextmanager
def intercepting(own: OwnAttention) -> Iterator[None]:
    """While it lasts, the modules attend as the window that is shown says, and as always when none is; they are as they were
    afterwards.

    Their methods are replaced rather than hooked: so they are left by an exception too, and met by code that calls `forward`
    directly; and no more of a layer runs under the mode than attends, for every operation under it costs some microseconds.
    """
    users = {
        **{one.module: partial(_intercepted, one) for one in own.modules},
        **{m: partial(_turned, m) for m in own.rotary},
    }
    with _LOCK:
        for module, replace in users.items():
            if module not in _INTERCEPTED:
                _INTERCEPTED[module] = _Interception(0, replace())
            _INTERCEPTED[module].users += 1
    try:
        yield
    finally:
        with _LOCK:
            for module in users:
                entry = _INTERCEPTED[module]
                entry.users -= 1
                if not entry.users:
                    del _INTERCEPTED[module]
                    entry.undo.close()


def _intercepted(one: Attending) -> ExitStack:
    """Replaces what has to be; closing it puts that back."""
    stack = ExitStack()
    stack.enter_context(_replaced(one.module, one.code.method, _attend(one)))
    if one.code.tables is not None:
        owner, name = _owner(one.module, one.code.tables)
        stack.enter_context(_replaced(owner, name, _tables(getattr(owner, name))))
    return stack


def _turned(module: nn.Module) -> ExitStack:
    """As `_intercepted`, for a module that makes rotary angles of position ids."""
    stack = ExitStack()
    stack.enter_context(_replaced(module, "forward", _angles(module.forward)))
    return stack


@contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    absent = object()
    before = vars(owner).get(name, absent)
    if "torch._dynamo" in sys.modules:  # where a model is compiled: tracing would not see which window is shown
        function = torch.compiler.disable(function)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if before is absent:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _attend(one: Attending) -> Callable[..., Any]:
    """Its method, answered while a window is shown."""
    method = getattr(one.module, one.code.method)

    def attend(*args: Any, **kwargs: Any) -> Any:
        here = _SHOWN.get()
        if here is None:
            return method(*args, **kwargs)
        answer = _Answer(here.window, one)
        with answer:
            out = method(*args, **kwargs)
        if answer.calls != 1:
            raise _not_intercepted(one.name, calls=answer.calls)
        here.answered.append(one.layer)
        return out

    return attend


class _Answer(TorchFunctionMode):
    """Answers a module's call of scaled_dot_product_attention. The call's mask is left out: it is the model's own, for the
    columns that are computed, and the window says what these see."""

    def __init__(self, window: Window, one: Attending) -> None:
        super().__init__()
        self.window, self.one, self.calls = window, one, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not SDPA:
            return func(*args, **kwargs)
        self.calls += 1
        query, key, value, scale = _arguments(*args, **kwargs)
        groups = self.one.code.groups(self.one.module)
        if key.shape[1] == query.shape[1] and groups > 1:  # repeated for each query: one of them is enough
            key, value = key[:, ::groups], value[:, ::groups]
        return self.window.attend(self.one.layer, query, key, value, scale).transpose(1, 2)


def _arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor, Tensor, float | None]:
    """Of scaled_dot_product_attention, those that a window needs."""
    return query, key, value, scale


def _tables(tables: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Those of the window's columns [b, 1, n, D] in the place of those of n columns from the left."""

    def at_columns(length: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        window = shown()
        if window is None:
            return tables(length, *args, **kwargs)
        sine, cosine = tables(window.width, *args, **kwargs)
        return sine[0, 0, window.columns][:, None], cosine[0, 0, window.columns][:, None]

    return at_columns


def _angles(angles: Callable[..., Any]) -> Callable[..., Any]:
    """Those of the window's columns, whatever position ids come."""

    def at_columns(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        window = shown()
        return angles(x, position_ids if window is None else window.columns, *args, **kwargs)

    return at_columns


def _not_intercepted(
    name: str, instead: str = 'with attn_implementation="sdpa"', calls: int | None = None
) -> InvalidArgumentError:
    how = "does not attend through torch.nn.functional.scaled_dot_product_attention (eager or flash attention)"
    if calls:
        how = f"calls torch.nn.functional.scaled_dot_product_attention {calls} times a forward, not once"
    return InvalidArgumentError(
        f"cache: {name} {how}, so keys and values cannot be kept for it; load the model {instead}, call model.eval(), or use "
        "cache=None"
    )
