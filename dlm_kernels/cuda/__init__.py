"""The CUDA backend: `csrc/cuda`, compiled at first use by CuPy's NVRTC, on torch's current stream."""

from __future__ import annotations

import torch

__all__ = ["available"]

INSTALL = "pip install cupy-cuda{major}x nvidia-cuda-nvrtc"


def available() -> tuple[bool, str]:
    """Whether the kernels can run here and, if not, why."""
    if not torch.cuda.is_available():
        return False, "torch sees no GPU"
    if torch.version.hip is not None:
        return False, "this torch is built for ROCm"
    major = (torch.version.cuda or "13").split(".")[0]
    install = INSTALL.format(major=major)
    try:
        from cupy_backends.cuda.api import runtime
        from cupy_backends.cuda.libs import nvrtc
    except ImportError as error:
        return False, f"CuPy does not import ({error}); {install}"
    try:
        compiler = nvrtc.getVersion()
    except Exception as error:  # CuPy and the loader it asks raise several kinds
        return False, f"NVRTC does not load ({str(error).splitlines()[0]}); {install}"
    driver = runtime.driverGetVersion()
    if driver // 1000 < compiler[0]:
        return False, (
            f"the GPU driver supports CUDA {driver // 1000}.{driver % 1000 // 10}, but NVRTC is of CUDA {compiler[0]}: "
            f"its kernels need a newer driver, or {INSTALL.format(major=driver // 1000)}"
        )
    return True, ""
