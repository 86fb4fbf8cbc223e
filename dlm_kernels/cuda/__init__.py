"""The CUDA backend: `csrc/cuda`, compiled at first use by CuPy's NVRTC, on torch's current stream."""

from __future__ import annotations

import torch

__all__ = ["available"]


def available() -> tuple[bool, str]:
    """Whether the kernels can run here and, if not, why."""
    if not torch.cuda.is_available():
        return False, "torch sees no GPU"
    if torch.version.hip is not None:
        return False, "this torch is built for ROCm"
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        return False, f"CuPy does not import ({error}); pip install cupy-cuda13x nvidia-cuda-nvrtc"
    return True, ""
