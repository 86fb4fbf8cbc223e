"""Compiling, announcing and running Numba kernels."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

logger = logging.getLogger("dlm_kernels")

ANNOUNCE_AFTER = 1.0  # seconds of compiling before it is worth a line
WORTH_A_THREAD = 2**18  # elements; starting a thread costs about what a kernel needs for these


def jit(function: Callable[..., Any], fastmath: bool | set[str] = False) -> Any:
    """`numba.njit` without the GIL; compiled code is kept on disk.

    fastmath: what LLVM may do to the order of sums; only where no token depends on it.

    Division by zero is that of IEEE, as in the other backends, not an exception.

    Numba's own cache key of a function leaves out the functions it calls. The cache folder is therefore named after the
    contents of this package: a change anywhere in it compiles anew.
    """
    config: Any = numba.config
    saved = config.CACHE_DIR
    root = Path(saved) if saved else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlm_kernels"
    config.CACHE_DIR = str(root / f"numba-{_fingerprint()}")
    try:
        return numba.njit(nogil=True, error_model="numpy", fastmath=fastmath, cache=True)(function)
    except (RuntimeError, OSError):  # no folder can be written: compile in every process
        return numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
    finally:
        config.CACHE_DIR = saved


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_announced = threading.Event()


def call(kernel: Any, *arguments: Any) -> Any:
    """Runs a kernel. If the first call of one takes seconds, a line on stderr (once) says that it compiles."""
    if kernel.signatures or _announced.is_set():
        return kernel(*arguments)
    timer = threading.Timer(ANNOUNCE_AFTER, _announce)
    timer.daemon = True
    timer.start()
    try:
        return kernel(*arguments)
    finally:
        timer.cancel()


def _announce() -> None:
    if not _announced.is_set():
        _announced.set()
        logger.warning("dlm_kernels: compiling the numba kernels, once; this takes some seconds")


def over_rows(kernel: Any, rows: int, work: int, *arguments: Any) -> None:
    """kernel(begin, end, *arguments) over [0, rows), split over `torch.get_num_threads()` threads when the work is worth it.

    Rows are independent, so the split changes no bit. Threads are made per call: nothing to break in a fork.
    """
    parts = max(1, min(torch.get_num_threads(), rows, work // WORTH_A_THREAD))
    bounds = [rows * part // parts for part in range(parts + 1)]
    if not kernel.signatures:
        call(kernel, 0, 0, *arguments)  # compile before there are threads
    threads = [threading.Thread(target=kernel, args=(begin, end, *arguments)) for begin, end in pairwise(bounds[1:])]
    for thread in threads:
        thread.start()
    kernel(0, bounds[1], *arguments)
    for thread in threads:
        thread.join()


def flat(values: Tensor) -> Any:
    """A numpy array [n] of a per-row parameter; a copy if it is expanded."""
    return values.detach().reshape(-1).numpy()


def _float_bits(typing_context, value):
    """The bits of a float32, as uint32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), codegen


def _bits_float(typing_context, value):
    """The float32 of 32 bits."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), codegen


float_bits: Any = intrinsic(_float_bits)
bits_float: Any = intrinsic(_bits_float)
