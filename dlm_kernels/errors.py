"""What the library raises on purpose."""


class DLMKernelsError(Exception):
    """Base of every error this library raises on purpose."""


class InvalidArgumentError(DLMKernelsError, ValueError):
    """An argument is wrong. The message names the argument, what came and what is allowed; nothing has been done yet."""


class BackendUnavailableError(DLMKernelsError, RuntimeError):
    """A backend that was asked for by name cannot run here. The message says why."""


class KernelCompilationError(BackendUnavailableError):
    """A kernel that is compiled at its first use does not compile here. Raised before anything is written."""
