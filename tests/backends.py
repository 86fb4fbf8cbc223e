"""Which backends a test can run on."""

from dlm_kernels.dispatch import BACKENDS, backend_status, devices_of, has_kernel


def backends_with(op=None, available=False):
    """Names of the backends that take CPU tensors in this process and have `op`, the reference last."""
    return [
        name
        for name in BACKENDS
        if "cpu" in (devices_of(name) or ("cpu",))
        and (op is None or has_kernel(op, name))
        and (not available or backend_status(name).available)
    ]
