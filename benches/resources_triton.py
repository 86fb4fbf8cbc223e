"""Every Triton kernel compiled ahead of time, as its op launches it; run as a process it prints the records as JSON.

The ops' `specimens()` run on "meta" tensors, their launches are recorded and compiled for each target with Triton's own choice
of types, constants and alignment hints. Needs no GPU and no driver; TRITON_INTERPRET must not be set, hence the process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

import dlm_kernels.triton
from dlm_benches.resources import CompiledKernel
from dlm_kernels.triton.runtime import Launch, recording

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def ops() -> list[str]:
    """The op files of the Triton backend that have specimens."""
    names = [module.name for module in iter_modules(dlm_kernels.triton.__path__)]
    return [name for name in names if hasattr(import_module(f"dlm_kernels.triton.{name}"), "specimens")]


def compiled_kernels(names: Sequence[str], targets: Sequence[str]) -> Iterator[CompiledKernel]:
    """One record per kernel, specimen and target. A file answers for its own kernels; a launch that an earlier specimen of it
    made as well is left out. Forms of one kernel in one specimen are numbered from the second on."""
    for name in names:
        seen: set[tuple[str, str]] = set()
        forms: Counter[tuple[str, str, str]] = Counter()
        module = import_module(f"dlm_kernels.triton.{name}")
        for label, call in module.specimens():
            with recording() as launches:
                call()
            for launch in (launch for launch in launches if launch.kernel.module == module.__name__):
                for target in targets:
                    source, options = compilation(launch, TARGETS[target])
                    key = (target, source.hash() + str(options))
                    if key not in seen:
                        seen.add(key)
                        form = (launch.kernel.__name__, label, target)
                        forms[form] += 1
                        number = f" ({forms[form]})" if forms[form] > 1 else ""
                        yield inspect_kernel(launch, f"{name}: {label}{number}", target, source, options)


def compilation(launch: Launch, target: GPUTarget) -> tuple[ASTSource, dict[str, Any]]:
    """What `launch` would compile on `target`: the steps of Triton's JITFunction.run, without a driver."""
    backend, kernel = make_backend(target), launch.kernel
    known = {name: value for name, value in launch.options.items() if name != "maxnreg" or target.backend == "cuda"}
    keywords = known | {"debug": False, "instrumentation_mode": "", "fpsan_homomorphic_casts": False}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = binder(*launch.arguments, **keywords)
    options, signature, constants, hints = kernel._pack_args(backend, keywords, bound, specialization, options)
    return ASTSource(kernel, signature, constants, hints), dict(options.__dict__)


def inspect_kernel(
    launch: Launch, label: str, target: str, source: ASTSource, options: dict[str, Any]
) -> CompiledKernel:
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    measured = amd_resources(compiled.asm) if target.startswith("gfx") else nvidia_resources(compiled.asm)
    return CompiledKernel(
        source="triton",
        kernel=launch.kernel.__name__,
        specimen=label,
        target=target,
        warps=launch.options["num_warps"],
        shared=compiled.metadata.shared,
        **measured,
    )


def nvidia_resources(asm: dict[str, Any]) -> dict[str, Any]:
    """From the cubin by the tools in Triton's wheel (a system's `ptxas -v` may not know its PTX); loads from the PTX."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        usage = tool("cuobjdump", "--dump-resource-usage", str(cubin))
        code = tool("nvdisasm", "-c", str(cubin))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    loads = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\b", asm["ptx"])
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "widest_load": max((int(count or 1) * int(bits) for count, bits in loads), default=0),
        "contractions": len(re.findall(r"\bfma\.(?!rn\.f64)", asm["ptx"])),  # exp and log in fp64 are made of them
    }


def amd_resources(asm: dict[str, Any]) -> dict[str, Any]:
    code = asm["amdgcn"]

    def noted(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", code)[1])  # type: ignore[index]

    loads = re.findall(r"(?:global|buffer)_load_(?:dword(?:x(\d))?|(ushort|ubyte))", code)
    return {
        "registers": noted("vgpr_count"),
        "stack": noted("private_segment_fixed_size"),
        "spills": noted("vgpr_spill_count"),  # scalar registers spill into lanes of vector registers, not to memory
        "widest_load": max((16 if small else 32 * int(count or 1) for count, small in loads), default=0),
        "contractions": 0,  # the compiler writes fused instructions of its own for a division, so counting them says nothing
    }


def tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Arguments: ops and targets, comma-separated; empty for all."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET is set: there is nothing to compile")
    names, targets = (argument.split(",") if argument else [] for argument in sys.argv[1:3])
    records = compiled_kernels(names or ops(), targets or list(TARGETS))
    json.dump([asdict(record) for record in records], sys.stdout)


if __name__ == "__main__":
    main()
