"""Chooses a backend: one table {(op, backend): function}, filled as ops are first used.

`backend=` beats `with use_backend(...)`, which beats the environment variable DLM_KERNELS_BACKEND. A backend named in any of
these ways must be there and have the op, otherwise `BackendUnavailableError`. Without a name the best available one for the
tensor's device runs; when that is not the first choice, one warning says what is lost. A backend has an op if its folder has
the op's file; an op that the best backend lacks runs on the next one that has it, without a warning, as installing something
would not change it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import torch

from dlm_kernels.errors import BackendUnavailableError, InvalidArgumentError, KernelCompilationError

ENVIRONMENT_VARIABLE = "DLM_KERNELS_BACKEND"
AUTO = "auto"  # how "no backend named" is spelled in an operator's arguments, which cannot be None

BACKENDS = ("cpu", "numba", "triton", "cuda", "reference")
PREFERENCE: dict[str, tuple[str, ...]] = {  # by device type; elsewhere the reference
    "cpu": ("cpu", "numba", "reference"),
    "cuda": ("triton", "cuda", "reference"),
}
# Ranking within a row, fusion of a whole step and moving rows suit blocks with barriers better than Triton's programs.
CUDA_FIRST = frozenset(("select_positions", "commit_", "denoise_step_", "revoke_", "gather_rows", "scatter_rows_"))
LOST = {
    "numba": "the ops are several times slower and compile at their first call",
    "triton": "long rows are ranked, and rows moved, by more or slower launches",
    "cuda": "fewer ops have kernels",
    "reference": "the ops are far slower and use more memory",
}

_TABLE: dict[tuple[str, str], Callable[..., Any]] = {}
_FAILED: dict[tuple[str, str], str] = {}  # kernels that did not compile here, and why
_ANNOUNCED: set[str] = set()
_chosen: ContextVar[str | None] = ContextVar("dlm_kernels_backend", default=None)


class BackendStatus(NamedTuple):
    available: bool
    reason: str  # why not; empty when available


class use_backend:
    """Every op inside the `with` runs on this backend. Nests; holds for the current thread or task.

    Raises InvalidArgumentError for an unknown name and BackendUnavailableError if the backend is not there.

    >>> import torch, dlm_kernels
    >>> with dlm_kernels.use_backend("reference"):
    ...     dlm_kernels.score_tokens(torch.tensor([[0.0, 2.0, 1.0]])).token
    tensor([1])
    """

    def __init__(self, name: str) -> None:
        self.name = check_name(name, "name")
        require(name)
        self._tokens: list[Any] = []

    def __enter__(self) -> use_backend:
        self._tokens.append(_chosen.set(self.name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _chosen.reset(self._tokens.pop())


def check_name(name: str, argument: str = "backend") -> str:
    if name not in BACKENDS:
        raise InvalidArgumentError(f"{argument} must be one of {BACKENDS}, got {name!r}")
    return name


@cache
def backend_status(name: str) -> BackendStatus:
    """Whether a backend can run in this process and, if not, why."""
    if name == "reference":
        return BackendStatus(True, "")
    try:
        available, reason = import_module(f"dlm_kernels.{name}").available()
        return BackendStatus(bool(available), "" if available else reason)
    except AttributeError:
        return BackendStatus(False, f"this installation has no {name} kernels")
    except Exception as error:  # a broken optional dependency may raise anything at import
        return BackendStatus(False, f"{type(error).__name__}: {error}")


def require(name: str) -> None:
    available, reason = backend_status(name)
    if not available:
        raise BackendUnavailableError(f"backend {name!r} is not available: {reason}")


def requested(backend: str) -> str:
    """The backend named by the argument, the context or the environment; AUTO if none of them names one."""
    name = backend if backend != AUTO else _chosen.get() or os.environ.get(ENVIRONMENT_VARIABLE) or AUTO
    return name if name == AUTO else check_name(name, ENVIRONMENT_VARIABLE if backend == AUTO else "backend")


def resolve(op: str, backend: str, device: torch.device) -> str:
    """The name of the backend that runs `op` on `device`: the one asked for, or the best available."""
    name = requested(backend)
    if name == AUTO:
        return _automatic(op, device.type)
    require(name)
    devices = devices_of(name)
    if devices is not None and device.type not in devices:
        raise BackendUnavailableError(f"backend {name!r} runs on {' and '.join(devices)} tensors, got one on {device}")
    if not has_kernel(op, name):
        raise BackendUnavailableError(f"backend {name!r} has no {op} kernel yet; {_backends_with(op)} can run it")
    return name


def devices_of(name: str) -> tuple[str, ...] | None:
    """Types of the devices whose tensors a backend takes; None: all."""
    if name == "reference":
        return None
    if name == "triton":
        return ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)
    return ("cuda",) if name == "cuda" else ("cpu",)


@cache
def has_kernel(op: str, backend: str) -> bool:
    """Whether this backend has this op, be the backend available or not."""
    return find_spec(_module(op, backend)) is not None


def _module(op: str, backend: str) -> str:
    """`step_` and `step_out_`, which writes into memory of the caller's, are two forms of an op and share its file."""
    return f"dlm_kernels.{backend}.{op.rstrip('_').removesuffix('_out')}"


def candidates(op: str, device_type: str) -> list[str]:
    """The backends that have `op` for tensors on such a device, first choice first."""
    names = PREFERENCE.get(device_type, ("reference",))
    if op in CUDA_FIRST:
        names = tuple(sorted(names, key=lambda name: name != "cuda"))  # stable: the rest keep their order
    return [name for name in names if has_kernel(op, name)]


@cache
def _automatic(op: str, device_type: str) -> str:
    skipped: list[str] = []
    for name in candidates(op, device_type):
        available, reason = backend_status(name)
        if available and (op, name) not in _FAILED:
            if skipped:
                announce(
                    f"dlm_kernels falls back to the {name} backend: {LOST[name]} ({'; '.join(skipped)}). "
                    "`python -m dlm_kernels.info` shows what is installed."
                )
            return name
        skipped.append(f"{name}: {reason or _FAILED[op, name]}")
    raise AssertionError("the reference is always available")


def announce(message: str, stacklevel: int = 2) -> None:
    """A warning, once a process: something works less well than it could."""
    if message not in _ANNOUNCED:
        _ANNOUNCED.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=stacklevel)


def kernel(op: str, name: str) -> Callable[..., Any]:
    """The function of backend `name` that carries out `op`; see `library.py` for its arguments."""
    function = _TABLE.get((op, name))
    if function is None:
        function = _TABLE[op, name] = getattr(module(op, name), op)
    return function


def module(op: str, name: str) -> ModuleType:
    """The file of backend `name` that has `op`."""
    return import_module(_module(op, name))


def give_up(op: str, name: str, error: KernelCompilationError) -> None:
    """Takes a kernel that does not compile here out of the automatic choice, for this process."""
    _FAILED[op, name] = f"{op} does not compile: {error}"
    _automatic.cache_clear()


def _backends_with(op: str) -> str:
    return " and ".join(name for name in BACKENDS if has_kernel(op, name))
