"""`python -m dlm_kernels.info`: what is installed, what runs, and why anything is missing."""

from __future__ import annotations

import os
import platform
import re
from importlib import import_module, metadata
from pathlib import Path

import torch

import dlm_kernels
from dlm_kernels import dispatch

OPENMP = re.compile(r"/[^\s]*lib(?:gomp|iomp5|omp)[^/\s]*\.so[^\s]*")


def report() -> str:
    """The text that `python -m dlm_kernels.info` prints."""
    lines = [
        f"dlm_kernels  {dlm_kernels.__version__}  ({Path(dlm_kernels.__file__).parent})",
        f"python       {platform.python_version()} on {platform.system()} {platform.machine()}",
        *(f"{name:12} {_version(name)}" for name in ("torch", "numpy", "numba", "triton", "cupy-cuda13x")),
        "",
        "backends (for each op the first available one that has it runs):",
    ]
    for kind, names in dispatch.PREFERENCE.items():
        lines.append(f" for tensors on {'the CPU' if kind == 'cpu' else 'a GPU'}")
        for name in names:
            available, reason = dispatch.backend_status(name)
            state = f"available{_cpu_details() if name == 'cpu' else ''}" if available else f"absent: {reason}"
            lines.append(f"  {name:10} {state}")
    named = os.environ.get(dispatch.ENVIRONMENT_VARIABLE)
    lines += [
        f"  {dispatch.ENVIRONMENT_VARIABLE} {'= ' + named if named else 'is not set'}",
        "",
        f"threads      {torch.get_num_threads()} (torch.set_num_threads), {os.cpu_count()} processors",
        f"OpenMP       {', '.join(_openmp_runtimes()) or 'none loaded'} in this process",
        f"GPU          {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none visible to torch'}",
    ]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_details() -> str:
    cpu = import_module("dlm_kernels.cpu")
    return f", instruction set {cpu.isa()}, OpenMP {cpu.openmp_runtime()}"


def _openmp_runtimes() -> list[str]:
    """The OpenMP libraries in this process; more than one means two thread pools (Linux only)."""
    try:
        return sorted(set(OPENMP.findall(Path("/proc/self/maps").read_text())))
    except OSError:
        return []


if __name__ == "__main__":
    print(report())
