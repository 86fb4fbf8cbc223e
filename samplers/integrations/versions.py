"""Which versions of other libraries the adapters need."""

from __future__ import annotations

from importlib import metadata

from dlm_kernels.errors import DLMKernelsError


class UnsupportedVersionError(DLMKernelsError, ImportError):
    """Another library is missing or too old. The message says which version is needed; nothing has been done yet."""


def require(package: str, minimum: str) -> None:
    """Raises UnsupportedVersionError unless the package is installed in this version ("4.48") or a later one."""
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        found = None
    if found is None or _release(found) < _release(minimum):
        state = "is not installed" if found is None else f"{found} is too old"
        raise UnsupportedVersionError(
            f"{package} {state}: this needs {package}>={minimum} (pip install 'dlm-kernels[hf]')"
        )


def _release(version: str) -> tuple[int, ...]:
    """Of "5.23.0.dev0": (5, 23)."""
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in version.split(".")[:2])
