"""The fallback where there is no compiler: the ops in Numba, for tensors on the CPU."""

from importlib import import_module


def available() -> tuple[bool, str]:
    """(True, "") if Numba can be used, otherwise (False, why not)."""
    try:
        import_module("numba")
    except Exception as error:  # an unsuitable numpy, for instance, raises at import
        return False, f"{type(error).__name__}: {error}"
    return True, ""
