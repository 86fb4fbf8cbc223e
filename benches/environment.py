"""Where a measurement was taken."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dlm_kernels.cpu.library import isa
from dlm_kernels.dispatch import backend_status


def environment() -> dict[str, Any]:
    """JSON-able facts that a reader needs to judge or repeat a measurement: hardware, versions, threads."""
    versions = {}
    for package in ("dlm-kernels", "torch", "numpy", "numba", "triton", "transformers", "diffusers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "instruction_set": _instruction_set(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
    }


def _instruction_set() -> str | None:
    """The one that the C++ kernels use; None without them."""
    return isa() if backend_status("cpu").available else None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(partial, path)
