"""Which backends a test can run on. DLMK_TEST_DEVICE=cuda puts the op tests' tensors on a GPU (`dlm-bench gpu-check`)."""

import os

from dlm_kernels import dispatch  # by module: cuda_host.py replaces its functions

DEVICE = os.environ.get("DLMK_TEST_DEVICE", "cpu")


def backends_with(op=None, available=False):
    """Names of the backends that take the tests' tensors in this process and have `op`, the reference last."""
    return [
        name
        for name in dispatch.BACKENDS
        if DEVICE in (dispatch.devices_of(name) or (DEVICE,))
        and (op is None or dispatch.has_kernel(op, name))
        and (not available or dispatch.backend_status(name).available)
    ]
