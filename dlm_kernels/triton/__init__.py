"""The Triton backend: a row of logits in tiles, shared by several programs where rows are few.

An op file has, from top to bottom, the kernels, the function of the op's name (allocates outputs and scratch),
`launch_<op>` (the same work into given outputs and scratch, without an allocation: what a CUDA graph captures), and
`specimens()`.

`specimens()` is how kernels come under the resource gate (`dlm-bench resources`): it yields pairs (label, call), where
`call()` runs the op on tensors of the "meta" device. The launches it makes are recorded (`runtime.recording`) and
compiled ahead of time for every target with the very arguments, constants and warps of the real launch. Every kernel
must appear in some specimen, with each logits dtype and each constant that changes what is compiled.

Device code keeps to: `runtime.launch` for every launch (no multiply-add contraction, typed compile errors); int64
row offsets; `portable_math.widen` right after every load of logits; `tl.div_rn` and `tl.sqrt_rn`; at most 16
elements a thread (`runtime.warps`); built-in reductions; no NaN into `tl.max` and no `inf - inf`, so that the
interpreter runs without warnings; no value read back; no atomics but the counters of `arrivals.py`. What orders an
fp32 sum may depend on the vocabulary, never on the number of rows.
"""

from __future__ import annotations

import os

import torch

__all__ = ["available"]

OLDEST = (3, 3)  # the first that takes tuples as kernel arguments


def available() -> tuple[bool, str]:
    """Whether the kernels can run here, on a GPU or in the interpreter, and, if not, why."""
    try:
        import triton
    except ImportError as error:
        return False, f"Triton does not import ({error}); pip install triton"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
        return False, f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True, ""
    if not torch.cuda.is_available():
        return False, "torch sees no GPU (TRITON_INTERPRET=1 runs the kernels in Triton's interpreter, slowly)"
    try:
        triton.runtime.driver.active.get_current_target()  # loads the driver; compiles its stub with the C compiler
    except Exception as error:
        return False, f"Triton finds no usable driver ({error})"
    return True, ""
