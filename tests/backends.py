"""Which backends a test can run on. DLMK_TEST_DEVICE=cuda puts the op tests' tensors on a GPU (`dlm-bench gpu-check`)."""

import os

from dlm_kernels.dispatch import BACKENDS, backend_status, devices_of, has_kernel

DEVICE = os.environ.get("DLMK_TEST_DEVICE", "cpu")


def backends_with(op=None, available=False):
    """Names of the backends that take the tests' tensors in this process and have `op`, the reference last."""
    return [
        name
        for name in BACKENDS
        if DEVICE in (devices_of(name) or (DEVICE,))
        and (op is None or has_kernel(op, name))
        and (not available or backend_status(name).available)
    ]
