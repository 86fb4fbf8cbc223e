"""The Triton backend: one program per row of logits, or several where rows are few."""

from __future__ import annotations

import os

import torch

__all__ = ["available"]


def available() -> tuple[bool, str]:
    """Whether the kernels can run here, on a GPU or in the interpreter, and, if not, why."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return False, f"Triton does not import ({error}); pip install triton"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return False, "torch sees no GPU (TRITON_INTERPRET=1 runs the kernels in Triton's interpreter, slowly)"
    return True, ""
