"""Compiles `csrc/cuda` by CuPy's NVRTC, keeps what it compiled on disk, and launches on torch's current stream.

Torch's tensors go to the kernels by address: no copy, and no CuPy array. What CuPy gives is NVRTC and the driver's functions.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from dlm_kernels.cuda.sources import headers, kernel_source, source_hash
from dlm_kernels.errors import KernelCompilationError

# Tokens are decided by arithmetic that rounds every operation: no contraction, and IEEE division, which is the default.
OPTIONS = ("--std=c++17", "--fmad=false")
CACHE_VARIABLE = "DLM_KERNELS_CACHE"


class Kernel(NamedTuple):
    """A kernel and the most threads a block of it may have."""

    file: str  # csrc/cuda/<file>.cu
    name: str
    most_threads: int


def launch(kernel: Kernel, blocks: int, threads: int, fields: list[int], device: torch.device) -> None:
    """Runs the kernel on torch's current stream of `device`. `fields` fill its argument struct of 64-bit integers."""
    from cupy_backends.cuda.api import driver

    with torch.cuda.device(device):
        function = _function(kernel, torch.cuda.current_device())
        arguments = (ctypes.c_int64 * len(fields))(*fields)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        stream = torch.cuda.current_stream().cuda_stream
        driver.launchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, ctypes.addressof(parameters), 0)


@cache
def _function(kernel: Kernel, device: int) -> int:
    from cupy_backends.cuda.api import driver

    return driver.moduleGetFunction(_module(kernel.file, device), kernel.name)


@cache
def _module(file: str, device: int) -> int:
    """The loaded module: its handle stays valid as long as the process runs."""
    from cupy_backends.cuda.api import driver

    major, minor = torch.cuda.get_device_capability(device)
    try:
        return driver.moduleLoadData(cubin(file, f"sm_{major}{minor}"))
    except driver.CUDADriverError as error:
        raise KernelCompilationError(f"the driver does not load csrc/cuda/{file}.cu: {error}") from error


def cubin(file: str, arch: str) -> bytes:
    """Machine code of `csrc/cuda/<file>.cu` for "sm_90" and the like, from the disk if it was compiled before."""
    import cupy
    from cupy_backends.cuda.libs import nvrtc

    key = (source_hash(file), arch, OPTIONS, cupy.__version__, nvrtc.getVersion())
    path = cache_folder() / f"{file}_{arch}_{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.cubin"
    with contextlib.suppress(OSError):
        return path.read_bytes()
    code = compile_source(file, arch)
    with contextlib.suppress(OSError):  # a folder that cannot be written costs the next process a compilation
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(code)
        os.replace(unfinished, path)
    return code


def cache_folder() -> Path:
    """DLM_KERNELS_CACHE, or dlm_kernels in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlm_kernels"


def compile_source(file: str, arch: str) -> bytes:
    """Raises KernelCompilationError with the compiler's log."""
    from cupy_backends.cuda.libs import nvrtc

    names, texts = headers().keys(), headers().values()
    program = nvrtc.createProgram(
        kernel_source(file), f"{file}.cu", [text.encode() for text in texts], [name.encode() for name in names]
    )
    try:
        nvrtc.compileProgram(program, (*OPTIONS, f"-arch={arch}"))
        return nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program).strip()
        raise KernelCompilationError(f"csrc/cuda/{file}.cu does not compile for {arch}: {log or error}") from error
    finally:
        nvrtc.destroyProgram(program)
