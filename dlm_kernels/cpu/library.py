"""Loads the compiled kernels and hands them the OpenMP runtime that torch has loaded."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

PATH = Path(__file__).with_name("_dlmk_cpu.so")
ABI_VERSION = 3
OUT_OF_MEMORY, OUT_OF_RANGE = 1, 2  # DlmkStatus
OPENMP_FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


class _Loaded(NamedTuple):
    library: ctypes.CDLL | None
    reason: str  # why there is no library; empty if there is one
    openmp: str  # path of the OpenMP runtime, or why there is none


@cache
def _load() -> _Loaded:
    if not PATH.exists():
        return _Loaded(None, "the C++ kernels were not compiled (no C++ compiler at install time)", "")
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError as error:
        return _Loaded(None, f"{PATH.name} does not load: {error}", "")
    library.dlmk_isa.restype = library.dlmk_isa_error.restype = ctypes.c_char_p
    if (found := library.dlmk_abi_version()) != ABI_VERSION:
        return _Loaded(None, f"{PATH.name} has ABI version {found}, expected {ABI_VERSION}: install again", "")
    if problem := library.dlmk_isa_error().decode():
        return _Loaded(None, problem, "")
    return _Loaded(library, "", _share_openmp(library))


def _share_openmp(library: ctypes.CDLL) -> str:
    """A second OpenMP runtime in the process would bring its own threads, so the library links none and borrows torch's."""
    torch.get_num_threads()  # torch's own runtime is mapped by now
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return "single thread: the runtime that torch loaded cannot be found on this system"
    candidates = dict.fromkeys(line.split()[-1] for line in lines if "omp" in line.rpartition("/")[2])
    for path in candidates:
        try:
            runtime = ctypes.CDLL(path)
            addresses = [ctypes.cast(getattr(runtime, name), ctypes.c_void_p) for name in OPENMP_FUNCTIONS]
        except (OSError, AttributeError):
            continue
        library.dlmk_set_openmp(*addresses)
        return path
    return "single thread: torch has loaded no OpenMP runtime"


def available() -> tuple[bool, str]:
    """Whether the compiled kernels can run here and, if not, why."""
    loaded = _load()
    return loaded.library is not None, loaded.reason


def isa() -> str:
    """The instruction set in use: "scalar", "avx2" or "avx512". DLM_KERNELS_CPU_ISA asks for one."""
    return library().dlmk_isa().decode()


def openmp_runtime() -> str:
    """Path of the OpenMP runtime that runs the kernels' threads, or why they run on one thread."""
    return _load().openmp


def library() -> ctypes.CDLL:
    loaded = _load().library
    assert loaded is not None, _load().reason
    return loaded


def check(status: int) -> None:
    if status == OUT_OF_MEMORY:
        raise MemoryError("dlm_kernels: the CPU kernels ran out of memory")


def rows(tensor: Tensor | None) -> tuple[int, int, int]:
    """A [B, L] argument as `DlmkRows`: address and strides; zeros when absent."""
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def as_rows(tensor: Tensor) -> Tensor:
    """[..., D] as [B, L, D] with a contiguous last dimension; a copy only where no view is one."""
    if tensor.ndim < 3:
        tensor = tensor[None, None] if tensor.ndim == 1 else tensor[None]
    elif tensor.ndim > 3:
        tensor = tensor.flatten(0, -3)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def pack(values: list[int]) -> ctypes.Array:
    """An argument struct, all of whose fields are 64-bit integers."""
    return (ctypes.c_int64 * len(values))(*values)
